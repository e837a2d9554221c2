"""What exported metrics cost: time of a record in the training, the exporter's processor, and how soon a value shows.

Processes record what a classifier records of a step, in two calls, while somebody scrapes as Prometheus does: every
second, and every 15 s, which is customary. 20 records a second are far more than the one in two seconds that a training
makes. "record" is the time in `Recorder.record` with the sink that exports, by the clock and by the processor;
"exporter" is its processor time over the time that passed, in % of one core. "visible" is the time from a write until a
page that is asked for in a loop shows it. Run: `python benchmarks/metrics.py` (a minute and a half).
"""

import argparse
import multiprocessing
import socket
import tempfile
import time
import urllib.request
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import common
import numpy as np

from hydramix_dist.config.metrics import MetricsSettings
from hydramix_dist.telemetry import METRICS, PREFIX, Histogram, Recorder, Sender, Value
from hydramix_dist.telemetry.starting import ensure_exporter
from hydramix_dist.telemetry.wire import numbers, set_messages

LABELS = {"run": "benchmark", "role": "classifier", "arm": "hydramix"}
STEP_SECTIONS = ("Every training", "Classifier", "Checkpoints", "Data")
GAUGES = ("images_per_second", "learning_rate", "loss_cross_entropy", "train_accuracy_ratio")
Taken = list[tuple[float, float]]
COUNTERS = ("images_seen_total", "mixed_batches_total")


def step_values(step: int, steps: Histogram) -> dict[str, Value]:
    """Return what a step of a classifier records."""
    steps.observe(0.05)
    gauges, counters = dict.fromkeys(GAUGES, 0.1234567890123 + step), dict.fromkeys(COUNTERS, 64.0 * (step + 1))
    return {**gauges, **counters, "step_seconds": steps}


def train(settings: MetricsSettings, pace: float, seconds: float, start: Barrier, told: "Queue[Taken]") -> None:
    """Record `pace` times a second; tell how many seconds each record took, by the clock and by the processor."""
    steps, taken = Histogram(METRICS["step_seconds"].bounds), []
    with Sender(LABELS, STEP_SECTIONS, settings, lambda: [({"trainings": 1.0, "workers": 1.0}, {})]) as sender:
        recorder = Recorder([sender], **LABELS)
        start.wait()
        began = time.monotonic()
        for step in range(int(pace * seconds)):
            values, before, busy = step_values(step, steps), time.perf_counter(), time.thread_time()
            recorder.record(64 * step, values)
            recorder.record(64 * step, {"gradient_norm": 1.0 + step}, engine="classifier")
            taken.append((time.perf_counter() - before, time.thread_time() - busy))
            time.sleep(max(0.0, began + (step + 1) / pace - time.monotonic()))
    told.put(taken)


def page(url: str) -> dict[str, float]:
    """Return the value of each line of a page, by name and labels as they stand there."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def scrape(url: str) -> int:
    """Ask as Prometheus does, compressed; return the bytes of the answer."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip", "Accept": "text/plain;version=0.0.4"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return len(answer.read())


def load(settings: MetricsSettings, workers: int, pace: float, seconds: float, every: float) -> dict[str, object]:
    """Have `workers` processes record while somebody scrapes; return times of a record and the exporter's share."""
    url, context = exporter_url(settings), multiprocessing.get_context("spawn")
    start, told = context.Barrier(workers + 1), context.Queue()
    processes = [context.Process(target=train, args=(settings, pace, seconds, start, told)) for _ in range(workers)]
    for process in processes:
        process.start()
    start.wait()
    began, before, scrapes = time.monotonic(), page(url), 0
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(every, left))
        if left > every:
            scrape(url)
            scrapes += 1
    after, passed = page(url), time.monotonic() - began
    wall, busy = 1000 * np.array([record for _ in processes for record in told.get()]).T
    for process in processes:
        process.join()
    cpu = f"{PREFIX}exporter_cpu_seconds_total"
    return {
        "records/s of each": pace,
        "scrapes": scrapes,
        "record, ms": float(np.median(wall)),
        "p99, ms": float(np.percentile(wall, 99)),
        "processor, ms": float(np.median(busy)),
        "exporter, %": 100 * (after[cpu] - before[cpu]) / passed,
        "lines": len(after),
    }


def exporter_url(settings: MetricsSettings) -> str:
    hello = ensure_exporter(settings)
    if hello is None:
        raise RuntimeError("there is no exporter")
    return hello.url


def visible(settings: MetricsSettings, times: int) -> list[float]:
    """Return the milliseconds from a write until a page shows it."""
    url, found = exporter_url(settings), []
    line = f'{PREFIX}world_size{{role="classifier",run="benchmark"}}'
    with Sender(LABELS, (), settings) as sender:
        for number in range(times):
            before = time.perf_counter()
            sender.write({"world_size": float(number)}, LABELS)
            while page(url).get(line) != number:
                pass
            found.append(1000 * (time.perf_counter() - before))
            time.sleep(0.02)
    return found[1:]  # the first one waits for the connection


def message_bytes() -> int:
    """Return the bytes that a step sends."""
    values = step_values(10**6, Histogram(METRICS["step_seconds"].bounds))
    labels = {name: tuple(LABELS[label] for label in METRICS[name].labels) for name in values}
    items = [((name, labels[name]), numbers(value)) for name, value in values.items()]
    return sum(len(message) for message, _ in set_messages(items))


def own_settings(folder: str) -> MetricsSettings:
    """Return settings of one's own, with an exporter that ends soon after."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return MetricsSettings(port=probe.getsockname()[1], targets=folder, expire=10.0)


def main() -> None:
    """Measure, and print tables and a JSON line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--workers", type=int, default=4, help="processes that record (default 4)")
    command.add_argument("--seconds", type=float, default=20.0, help="of each row (default 20)")
    arguments = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = own_settings(folder)
        ways = (20.0, 1.0), (20.0, 15.0), (0.5, 15.0)
        rows = [load(settings, arguments.workers, pace, arguments.seconds, every) for pace, every in ways]
        shown = visible(settings, 51)
    table = [{key: f"{value:.3g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    common.show(f"{arguments.workers} processes, {arguments.seconds:g} s", table)
    print(f"\nvisible after a write: {common.quartiles(np.array(shown))} ms; a step sends {message_bytes()} bytes")
    milliseconds = float(np.median(shown))
    loads = {f"{pace:g}/s, scraped every {every:g} s": row for (pace, every), row in zip(ways, rows, strict=True)}
    common.record(
        "metrics", workers=arguments.workers, loads=loads, visible_ms=milliseconds, message_bytes=message_bytes()
    )


if __name__ == "__main__":
    main()
