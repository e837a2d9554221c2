"""Parallel efficiency of an import: our own with P processes against our own with one, and where its time goes.

Without SOURCE, 10,000 coloured 32x32 images are made: noise whose spectrum falls as that of photographs does, in the
files of CIFAR-10's binary version, 8,000 for training. Imports take turns, each in a process of its own, as from the
command line. Three figures, each of which other programs on the machine disturb less than the one before:

- by the clock: T1 / (P * TP), from median seconds;
- by CPU time: CPU1 / (CPUP + (P - 1) * S), which is the same where workers wait for nothing but S, the seconds in which
  the main process works alone; from the least CPU seconds of all rounds, since disturbance only adds to them;
- computed, for any P: Amdahl's bound with the processes' own cost. S with workers that start while the main process
  reads, and the rest of CPU1, with what the main process spends on feeding them, divided by P.

Felzenszwalb's share is that of the library's function in the CPU time of the import with one process.
Run: `python benchmarks/import_speed.py [SOURCE] [--processes P] [--rounds N]`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TRAINING_FILES, IMAGES_A_FILE, TEST_IMAGES, SIDE = 5, 1600, 2000, 32
# In this order; "decode" and "segment" are shared out, and the main process alone does the others.
STAGES = ("read", "decode", "write", "segment", "finish")
SHARED = ("decode", "segment")
PROMISED = 0.85
WORKERS_IMPORT = ("hydramix_dist.data.staging", "hydramix_dist.data.segmentation")

Taken = dict[str, Any]  # what one import took


def write_cifar_like(folder: Path) -> None:
    """Write the six files of CIFAR-10's binary version, filled with noise of a photograph's spectrum."""
    rng = np.random.default_rng(0)
    down, right = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    amplitude_HW = 1 / np.maximum(np.hypot(down, right), 1 / SIDE)
    # Three patterns make a picture: the first is light and dark, and the weaker others are its colours.
    colours = np.array([[1.0, 0.3, 0.1], [1.0, 0.0, -0.2], [1.0, -0.3, 0.1]])
    for number in range(TRAINING_FILES + 1):
        count = IMAGES_A_FILE if number < TRAINING_FILES else TEST_IMAGES
        white_NCHW = rng.normal(size=(count, 3, SIDE, SIDE))
        noise_NCHW = np.fft.irfft2(np.fft.rfft2(white_NCHW) * amplitude_HW, s=(SIDE, SIDE))
        x_NCHW = np.einsum("dc,nchw->ndhw", colours, noise_NCHW / noise_NCHW.std())
        records = np.empty((count, 1 + 3 * SIDE * SIDE), np.uint8)
        records[:, 0] = np.arange(count) % 10
        records[:, 1:] = (120 + 60 * x_NCHW).clip(0, 255).reshape(count, -1)
        name = f"data_batch_{number + 1}.bin" if number < TRAINING_FILES else "test_batch.bin"
        (folder / name).write_bytes(records.tobytes())


def timed_import(source: str, target: str, processes: int) -> Taken:
    """Return what one import took: seconds by stage, by the clock and of CPU time, in this process and in others."""
    # Imported here, for worker processes load this file again, and none of them needs what the main process does.
    import skimage.segmentation

    felzenszwalb, library = 0.0, skimage.segmentation.felzenszwalb

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal felzenszwalb
        began = time.process_time()
        found = library(*given, **options)
        felzenszwalb += time.process_time() - began
        return found

    skimage.segmentation.felzenszwalb = counted  # before our own module takes the function from there
    from hydramix_dist.data.importer import import_dataset

    ends: dict[str, tuple[float, float]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        now = time.perf_counter(), time.process_time()
        if stage == "segments":
            ends.setdefault("write", now)
        ends[{"read": "read", "images": "decode", "segments": "segment"}[stage]] = now

    last = time.perf_counter(), time.process_time()
    counts = import_dataset(source, target, workers=processes, progress=progress).counts
    ends["finish"] = time.perf_counter(), time.process_time()
    clock, cpu = {}, {}
    for stage in STAGES:
        clock[stage], cpu[stage] = ends[stage][0] - last[0], ends[stage][1] - last[1]
        last = ends[stage]
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "images": sum(map(sum, counts.values())),
        "segmented": sum(counts["train"]),
        "clock": clock,
        "cpu": cpu,
        "workers": workers.ru_utime + workers.ru_stime,
        "felzenszwalb": felzenszwalb,
    }


def in_turn(source: str, folder: Path, processes: int, rounds: int) -> tuple[list[Taken], list[Taken]]:
    """Return what the imports with one process took, and those with `processes`; they take turns."""
    one: list[Taken] = []
    many: list[Taken] = []
    for number in range(rounds):
        for count, runs in ((1, one), (processes, many)):
            target = str(folder / f"by-{count}-{number}")
            command = [sys.executable, __file__, source, "--once", target, "--processes", str(count)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"  {count} process{'es' * (count > 1)}: {sum(runs[-1]['clock'].values()):.1f} s", flush=True)
    return one, many


def start_up() -> float:
    """Return the CPU seconds that a worker process takes to import what it runs, the least of five starts."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {', '.join(WORKERS_IMPORT)}"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(seconds)


def show_stages(one: list[Taken], many: list[Taken], processes: int) -> None:
    """Print median seconds by stage, by the clock and of the main process's CPU time."""
    print(
        f"\n{one[0]['images']} images, {one[0]['segmented']} of them segmented; medians of {len(one)} rounds, seconds"
    )
    print(f"  {'':<8}{'1 process':>22}{f'{processes} processes':>22}")
    print(f"  {'stage':<8}" + f"{'clock':>12}{'CPU':>10}" * 2)
    for stage in STAGES:
        cells = [statistics.median(t[kind][stage] for t in runs) for runs in (one, many) for kind in ("clock", "cpu")]
        print(f"  {stage:<8}" + "".join(f"{cell:{width}.2f}" for cell, width in zip(cells, (12, 10) * 2, strict=True)))
    print(f"  {'workers':<8}{'':>34}{statistics.median(taken['workers'] for taken in many):10.2f}")


def report(one: list[Taken], many: list[Taken], processes: int) -> None:
    """Print the table of stages, the figures, and a JSON line."""
    show_stages(one, many, processes)
    clock_1, clock_p = (statistics.median(sum(taken["clock"].values()) for taken in runs) for runs in (one, many))
    cpu_1, cpu_p = (min(sum(taken["cpu"].values()) + taken["workers"] for taken in runs) for runs in (one, many))
    alone = min(sum(taken["cpu"][stage] for stage in STAGES if stage not in SHARED) for taken in many)
    feeding = min(sum(taken["cpu"][stage] for stage in SHARED) for taken in many)
    start = start_up()
    serial = alone + max(0.0, start - min(taken["cpu"]["read"] for taken in many))
    computed = {p: cpu_1 / (p * serial + cpu_1 - alone + feeding) for p in sorted({2, 4, 8, processes})}
    figures = {
        "efficiency_clock": clock_1 / (processes * clock_p),
        "efficiency_cpu": cpu_1 / (cpu_p + (processes - 1) * alone),
        "cpu_inflation": cpu_p / cpu_1,
        "felzenszwalb_share": statistics.median(t["felzenszwalb"] / sum(t["cpu"].values()) for t in one),
        "alone_s": alone,
        "feeding_s": feeding,
        "start_s": start,
        "clock_1_s": clock_1,
        "clock_p_s": clock_p,
        "cpu_1_s": cpu_1,
        "cpu_p_s": cpu_p,
    }
    print(
        f"by the clock {clock_1:.1f} s against {clock_p:.1f} s: efficiency {figures['efficiency_clock']:.2f} "
        f"with {processes} processes, promised at least {PROMISED}\n"
        f"CPU time {cpu_1:.1f} s against {cpu_p:.1f} s: {figures['cpu_inflation']:.2f} x; "
        f"efficiency {figures['efficiency_cpu']:.2f}\n"
        f"main process: alone {alone:.2f} s, feeding {feeding:.2f} s; start of a worker process {start:.2f} s\n"
        f"computed: {', '.join(f'{value:.2f} with {p}' for p, value in computed.items())} processes\n"
        f"Felzenszwalb's share of the CPU time with one process: {figures['felzenszwalb_share']:.0%}"
    )
    record = {"benchmark": "import_speed", "images": one[0]["images"], "processes": processes}
    record |= {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(record | {"computed": {p: round(value, 3) for p, value in computed.items()}}))


def main() -> None:
    """Measure, or (with --once) be one of the imports measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="anything `hydramix data import` reads (default: images made here)")
    parser.add_argument("--processes", type=int, default=2, help="P (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="imports of each kind (default 3)")
    parser.add_argument("--once", metavar="TARGET", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(timed_import(given.source, given.once, given.processes)))
        return
    if given.processes < 2:
        parser.error("--processes: at least 2, since one is what they are compared with")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = given.source
        if source is None:
            made = folder / "cifar-like"
            made.mkdir()
            write_cifar_like(made)
            source = str(made)
        report(*in_turn(source, folder, given.processes, given.rounds), given.processes)


if __name__ == "__main__":
    main()
