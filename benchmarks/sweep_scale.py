"""Whether a sweep stays as fast as it grows: 100, 300 and 1,000 trainings that return at once, through Ray Tune.

All that `hydramix sweep` does but the trainings themselves: processes, records, the table on a terminal (drawn into
nothing), going on, the page. Each size is a process of its own, so that its memory is its own. The growth between two
sizes is the exponent log(ratio of the costs) / log(ratio of the sizes): 1 is linear, 2 quadratic. Promised: at most 1.2
for the Tune part, the time from the first training that begins to the last one done, without the start of Ray; and for
its last nine tenths too, for processes that still start in the first one take as long in a sweep of any size.

Tune's share is the part of all slots' time that is not spent inside a training (a slot: the cores of one training).
Trainings that return at once leave it everything. For trainings of 25 s it is computed: as if each kept its slot
waiting as long as one of these does, though of long ones two would seldom want the driver at the same moment.

Besides: going on with a sweep that is finished, which starts no Ray, and with one that lost the last tenth of its
record, until it knows what is left ("before Ray") and until a training begins.
Run: `python benchmarks/sweep_scale.py` (on cores that do nothing else).
"""

import argparse
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import torch
from rich.console import Console
from sweeps import sweep_of, times, tuning_seconds

from hydramix_dist.cli.sweep_display import SweepLive
from hydramix_dist.data.builtin import PHOTOS
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.ledger import LEDGER_FILE, read_events
from hydramix_dist.orchestration.sweep.run import Sweep, open_parts, run_sweep
from hydramix_dist.orchestration.sweep.standing import read_standing, results_of
from hydramix_dist.orchestration.sweep.watch import Watch
from hydramix_dist.orchestration.tasks import ClassifierTask, Progress, ShouldStop, Task
from hydramix_dist.report.sweep_page import write_sweep_page
from hydramix_dist.telemetry import Sink
from hydramix_dist.training import environment

PROMISED = 1.2
REAL_SECONDS = 25.0  # of a training, for the share that is computed
ARMS: dict[str, Any] = {
    "baseline": {},
    "trivialaugment": {"augmentation": "trivial"},
    "pixels": {"pixels": {"count": 2, "mask": {"kind": "grid"}}},
    "pixels+trivialaugment": {"augmentation": "trivial", "pixels": {"count": 2, "mask": {"kind": "grid"}}},
}
CPU = torch.device("cpu")

TUNE, NINE_TENTHS = "Tune part, s", "its last nine tenths, s"
RECORD, PAGE = "record, bytes", "results and page, s"
DRIVER = "driver's CPU meanwhile, s"
FINISHED = "resume, nothing to do, s"
BEFORE_RAY = "resume, a tenth lost: before Ray, s"
GROWING = (TUNE, NINE_TENTHS, DRIVER, RECORD, PAGE, FINISHED, BEFORE_RAY)  # in proportion, at best


class Watching(SweepLive):
    """Draws as on a terminal, into nothing, and notes what the driver had used when Tune began."""

    def __init__(self) -> None:
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the console
        super().__init__(Console(file=nowhere, force_terminal=True, width=120, height=40))
        self.peak_bytes: int | None = None
        self.cpu_seconds = 0.0

    def look(self, book: Book, watch: Watch) -> None:
        if self.peak_bytes is None:
            self.peak_bytes, self.cpu_seconds = environment.peak_memory_bytes(CPU), time.process_time()
        super().look(book, watch)


def at_once(task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]) -> dict[str, Any]:
    """Return a result as a classifier's training does, with drawn predictions. Raises ValueError for another task."""
    began, cpu_began = time.perf_counter(), time.process_time()
    if not isinstance(task, ClassifierTask):
        raise ValueError(f"{task.name} is no classifier")
    draw = random.Random(task.name)
    predictions = [draw.randrange(len(PHOTOS)) for _ in task.test_rows]
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "images_seen": task.settings.images,
        "peak_memory_bytes": environment.peak_memory_bytes(CPU),
        "predictions": predictions,
        "test_curve": [[task.settings.images, 1 / len(PHOTOS)]],
    }


def sized(folder: str, size: int) -> Sweep:
    """Return a sweep of so many trainings, on the built-in images, which `folder` keeps for all sizes."""
    tree = {
        "shots": [1],
        "seeds": list(range(size // len(ARMS))),
        "test_limit": 90,
        "arms": ARMS,
        "runtime": {"device": "cpu"},
    }
    return sweep_of(tree, Path(folder, str(size)), Path(folder, "shared"))


def carried_out(sweep: Sweep) -> Watching:
    """Run a sweep, or go on with it; return what watched it."""
    display = Watching()
    with display:
        run_sweep(sweep, display, work=at_once)
    return display


def measure(folder: str, size: int) -> dict[str, float]:
    """Return what a sweep of a size costs, by the names of the table. Raises ValueError where not all is done."""
    sweep = sized(folder, size)
    display = carried_out(sweep)
    cpu, peak = time.process_time() - display.cpu_seconds, environment.peak_memory_bytes(CPU)
    if display.peak_bytes is None:
        raise ValueError("the sweep was over before anybody looked at it")
    events, record = list(read_events(sweep.out)), sweep.out.read(LEDGER_FILE)
    done = times(events, "done")
    if len(done) != size:
        raise ValueError(f"{len(done)} of {size} trainings were done")
    taken, tenth = tuning_seconds(events), max(1, size // 10)
    slots = usable_cores() // sweep.settings.runtime.threads
    inside = sum(event["wall_seconds"] for event in events if event["event"] == "done")
    waiting = (taken * slots - inside) / size

    finished = seconds(lambda: carried_out(sweep))
    page = seconds(lambda: write_sweep_page(sweep.out, results_of(read_standing(sweep.out))))
    known, begun = resume_cut(sweep, record)
    return {
        TUNE: taken,
        NINE_TENTHS: done[-1] - done[tenth],
        "a training, ms": 1000 * taken / size,
        "in the first tenth, ms": 1000 * (done[tenth] - done[0]) / tenth,
        "in the last tenth, ms": 1000 * (done[-1] - done[-1 - tenth]) / tenth,
        "Tune's share, at once, %": 100 * waiting * size / (taken * slots),
        f"Tune's share, {REAL_SECONDS:.0f} s each, %": 100 * waiting / (waiting + REAL_SECONDS),
        DRIVER: cpu,
        "driver's peak before it, MiB": display.peak_bytes / 2**20,
        "driver's peak after it, MiB": peak / 2**20,
        RECORD: len(record),
        "record, bytes a training": len(record) / size,
        PAGE: page,
        FINISHED: finished,
        BEFORE_RAY: known,
        "resume, a tenth lost: to a training, s": begun,
    }


def resume_cut(sweep: Sweep, record: bytes) -> tuple[float, float]:
    """Return the time until a sweep that lost the last tenth of its record starts Ray, and until a training begins."""
    lines = record.splitlines(keepends=True)
    kept = lines[: len(lines) - len(lines) // 10]
    sweep.out.put(LEDGER_FILE, b"".join(kept))
    began = time.time()
    carried_out(sweep)
    events = list(read_events(sweep.out))[len(kept) :]
    return times(events, "session")[0] - began, times(events, "begun")[0] - began


def seconds(act: Callable[[], object]) -> float:
    """Return how long something took."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def growth(costs: Mapping[int, Mapping[str, float]], name: str) -> dict[str, float]:
    """Return the exponent from each size to the next."""
    return {
        f"{small} to {large}": math.log(costs[large][name] / costs[small][name]) / math.log(large / small)
        for small, large in pairwise(costs)
    }


def shown(value: float) -> str:
    """Return a number with three digits or, where it is larger, whole."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def report(costs: Mapping[int, Mapping[str, float]]) -> None:
    """Print the table, whether the promise is kept, and a JSON line."""
    exponents = {name: growth(costs, name) for name in GROWING}
    rows: list[dict[str, object]] = []
    for name in next(iter(costs.values())):
        row: dict[str, object] = {"": name, **{f"{size:,}": shown(found[name]) for size, found in costs.items()}}
        found_here = exponents.get(name, {})
        rows.append(row | {span: f"{found_here[span]:.2f}" if found_here else "" for span in exponents[TUNE]})
    common.show(f"trainings that return at once, {usable_cores()} cores; on the right how each cost grows", rows)
    if exponents[TUNE]:
        worst = max(value for name in (TUNE, NINE_TENTHS) for value in exponents[name].values())
        word = "kept" if worst <= PROMISED else "missed"
        print(f"  the Tune part grows with the exponent {worst:.2f} at most, promised at most {PROMISED:g}: {word}")
    common.record("sweep_scale", costs=costs, growth=exponents, promised=PROMISED)


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--sizes", default="100,300,1000", help="trainings of each sweep (default 100,300,1000)")
    given = command.parse_args().sizes
    sizes = sorted({int(size) for size in given.split(",")})
    if any(size < len(ARMS) or size % len(ARMS) for size in sizes):
        command.error(f"--sizes {given}: each is to be a multiple of {len(ARMS)}, the number of arms")
    with tempfile.TemporaryDirectory(prefix="sweep-scale-") as folder:
        open_parts(sized(folder, sizes[0]), Watching())  # the import is no part of any size
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as anew:
            found = anew.map(measure, [folder] * len(sizes), sizes)
            report(dict(zip(sizes, found, strict=True)))


if __name__ == "__main__":
    import sweep_scale

    sweep_scale.main()  # by this name, not __main__, Ray's processes know what is here
