"""How well a sweep fills the cores of this machine: 60 real trainings of about 25 s, one thread each, through Ray Tune.

Utilisation = CPU seconds that the trainings need where each runs alone / (time of the sweep x cores), the time counted
from the first training that begins to the last one done: Ray, Tune, processes that start and trainings that slow each
other down take the rest. Promised: at least 0.85. Beside it stands the same of the whole command, with what it measures
before and with Ray's start and end, which a longer sweep has but once.

The CPU seconds are measured: of each kind (a generator, and the classifier of each arm) some trainings of the sweep run
in one process, one after another and with nothing beside them, by turns before and after the sweep; their mean stands
for all of the kind. Lengths are chosen by a short calibration, so that each kind takes as long.

Nothing else may run on the machine meanwhile: whatever does is counted as the sweep's loss.
Run: `python benchmarks/sweep_packing.py` (twenty minutes on two cores).
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
from sweeps import sweep_of, times, tuning_seconds

from hydramix_dist.cli.console import error_console
from hydramix_dist.cli.sweep_display import SweepLive
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.orchestration.pool import Stop, run_tasks
from hydramix_dist.orchestration.sweep.ledger import Event, read_events
from hydramix_dist.orchestration.sweep.probe import Probe, probe, seconds_of
from hydramix_dist.orchestration.sweep.run import Sweep, make_design, run_sweep, segment
from hydramix_dist.orchestration.tasks import ClassifierTask, Progress, ShouldStop, Task

PROMISED = 0.85
GENERATOR = "generator"
ARMS: dict[str, Any] = {
    "baseline": {},
    "trivialaugment": {"augmentation": "trivial"},
    "hydramix": {"generator": "hydramix"},
}
KINDS = (GENERATOR, *ARMS)  # the trainings of one seed
CHECKPOINTS = 2


@dataclass(frozen=True)
class Timed:
    """A training as a task for the pool, which tells what its process spent, loading and scoring included."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    def run(self, progress: Progress, should_stop: ShouldStop) -> dict[str, Any]:
        """Return the CPU seconds of all (`spent`) and of the training's own count (`counted`)."""
        began = time.process_time()
        result = self.task.run(progress, should_stop)
        return {"spent": time.process_time() - began, "counted": result["cpu_seconds"]}


def settings(seeds: Sequence[int], images: Mapping[str, int]) -> dict[str, Any]:
    """Return the sweep's settings, with the length of each kind of training."""
    arms = {name: {**arm, "classifier": {"images": images[name]}} for name, arm in ARMS.items()}
    return {
        "shots": [5],
        "seeds": list(seeds),
        "test_limit": 200,
        "verdict": False,
        "generators": {
            "hydramix": {
                "network": {"side": 32, "width": 8, "blocks": 2, "mix_after": "block1"},
                "discriminator": {"width": 8},
                "batch": 8,
                "images": images[GENERATOR],
            }
        },
        "classifier": {
            "network": "wrn-10-1",
            "dropout": 0.0,
            "batch": 16,
            "optimizer": {"lr": 0.02, "weight_decay": 0.005},
        },
        "arms": arms,
        "runtime": {"device": "cpu", "threads": 1, "checkpoints": CHECKPOINTS},
    }


def kind_of(task: Task) -> str:
    return task.arm if isinstance(task, ClassifierTask) else GENERATOR


def tasks_of(sweep: Sweep, display: SweepLive, seeds: Iterable[int]) -> list[Task]:
    """Return the sweep's trainings on these seeds, generators first; images and segment maps are there then."""
    design = make_design(sweep, display)
    segment(design, display)
    trials = [trial for cell in design.cells if cell.seed in seeds for trial in design.final(cell, {})]
    return sorted((trial.task for trial in trials), key=lambda task: task.kind != GENERATOR)


def calibrated(folder: Path, display: SweepLive, seconds: float) -> dict[str, int]:
    """Return how many images each kind of training is to see, to take about so long."""
    trial = sweep_of(settings([0], dict.fromkeys(KINDS, 1000)), folder / "calibration", folder / "shared")
    tasks = tasks_of(trial, display, [0])
    measured = probe(tasks, trial.shared, lambda key, done, total: None)
    return {kind_of(task): _images(task, measured, seconds) for task in tasks}


def _images(task: Task, measured: Probe, seconds: float) -> int:
    batch, some = task.settings.batch, 1000

    def taking(steps: int) -> float:
        longer = task.settings.model_copy(update={"images": steps * batch})
        return seconds_of(replace(task, settings=longer), measured)  # type: ignore[arg-type]  # of its kind

    a_step = (taking(2 * some) - taking(some)) / some
    return max(CHECKPOINTS, round(some + (seconds - taking(some)) / a_step)) * batch


def alone(tasks: Sequence[Task], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what trainings took by kind, one after another in one process, in folders of their own.

    Raises ValueError where one fails.
    """
    urls = {task.folder_url: str(folder / f"{number}") for number, task in enumerate(tasks)}
    jobs: dict[str, Any] = {}
    for task in tasks:
        placed = replace(task, folder_url=urls[task.folder_url])
        if isinstance(placed, ClassifierTask) and placed.generator_url is not None:
            placed = replace(placed, generator_url=urls[placed.generator_url])
        jobs[placed.folder_url] = Timed(placed)
    # What a process does but once, at its first training, is no training's need.
    first = tasks[0]
    short = first.settings.model_copy(update={"images": CHECKPOINTS * first.settings.batch})
    warm_up = Timed(replace(first, folder_url=str(folder / "warm-up"), settings=short))  # type: ignore[arg-type]
    found: dict[str, list[dict[str, Any]]] = {}
    with Stop() as stop:
        for ended in run_tasks({"warm-up": warm_up} | jobs, {}, 1, stop, lambda key, done, total: None):
            if ended.result is None:
                raise ValueError(f"{ended.key} failed: {ended.error}")
            if ended.key != "warm-up":
                found.setdefault(kind_of(jobs[ended.key].task), []).append(ended.result)
    return found


def summed(parts: Iterable[Mapping[str, list[dict[str, Any]]]], name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return a value of all runs by kind, those of several parts together."""
    return {kind: np.array([run[name] for part in parts for run in part.get(kind, ())]) for kind in KINDS}


def report(events: Sequence[Event], needed: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
    """Print both tables, whether the promise is kept, and a JSON line.

    `needed` and `counted` are CPU seconds of trainings alone by kind: of all, and of what a result counts.
    """
    kinds = {event["key"]: event["arm"] or GENERATOR for event in events if event["event"] == "begun"}
    done = [event for event in events if event["event"] == "done"]
    count = Counter(kinds[event["key"]] for event in done)
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        own = [event for event in done if kinds[event["key"]] == kind]
        cpu, wall = (float(np.mean([event[name] for event in own])) for name in ("seconds", "wall_seconds"))
        rows.append(
            {
                "kind": kind,
                "trainings": len(own),
                "CPU s alone": f"{needed[kind].mean():.1f}",
                "least - most": f"{needed[kind].min():.1f} - {needed[kind].max():.1f}",
                "of it steps": f"{counted[kind].mean():.1f}",
                "in the sweep": f"{cpu:.1f}",
                "by the clock": f"{wall:.1f}",
            }
        )
    cores, taken = usable_cores(), tuning_seconds(events)
    whole = times(events, "ended")[-1] - times(events, "session")[0]
    start = times(events, "begun")[0] - times(events, "session")[0]
    work = sum(count[kind] * float(needed[kind].mean()) for kind in KINDS)
    within = sum(float(event["wall_seconds"]) for event in done)
    used, used_of_whole = work / (taken * cores), work / (whole * cores)
    common.show(f"{len(done)} trainings on {cores} cores; steps: with saves and scores on the way", rows)
    print(
        f"  {work:.0f} CPU s alone / ({taken:.0f} s x {cores} cores): utilisation {used:.3f}, promised at least "
        f"{PROMISED}: {'kept' if used >= PROMISED else 'missed'}\n"
        f"  of the whole command's {whole:.0f} s: {used_of_whole:.3f}; {start:.0f} s before the first training began\n"
        f"  a training's steps under way on {within / (taken * cores):.3f} of the cores' time\n"
        f"  {3600 * len(done) / taken:.0f} trainings an hour"
    )
    common.record(
        "sweep_packing",
        trainings=len(done),
        cores=cores,
        utilisation=used,
        utilisation_of_whole=used_of_whole,
        trainings_an_hour=3600 * len(done) / taken,
        seconds=taken,
        seconds_whole=whole,
        seconds_before_first=start,
        cpu_seconds_alone={kind: float(values.mean()) for kind, values in needed.items()},
        promised=PROMISED,
    )


def main() -> None:
    """Measure, and print tables and a JSON line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a_seed = f"in whole seeds of {len(KINDS)}"
    command.add_argument("--trials", type=int, default=60, help=f"trainings of the sweep, rounded up, {a_seed} (60)")
    command.add_argument("--sample", type=int, default=2, help="trainings of each kind that run alone (default 2)")
    command.add_argument("--seconds", type=float, default=25.0, help="that a training is to take (default 25)")
    given = command.parse_args()
    seeds = range(-(-given.trials // len(KINDS)))
    if not 1 <= given.sample <= len(seeds):
        command.error(f"--sample {given.sample}: from 1 to {len(seeds)}, the seeds of {given.trials} trainings")
    display = SweepLive(error_console())
    with tempfile.TemporaryDirectory(prefix="sweep-packing-") as temporary, display:
        folder = Path(temporary)
        images = calibrated(folder, display, given.seconds)
        sweep = sweep_of(settings(seeds, images), folder / "sweep", folder / "shared")
        tasks = tasks_of(sweep, display, seeds)
        display.say(f"{len(tasks)} trainings; images that each kind sees: {images}")
        # Before and after: a machine that drifts touches the sweep and what it is compared with alike.
        sampled = seeds[: given.sample]
        before = alone([task for task in tasks if task.seed in sampled[::2]], folder / "before")
        standing = run_sweep(sweep, display)
        if standing.counts["done"] != len(tasks):
            raise ValueError(f"{standing.counts['done']} of {len(tasks)} trainings were done")
        later = [task for task in tasks if task.seed in sampled[1::2]]
        parts = [before, *([alone(later, folder / "after")] if later else [])]
        report(list(read_events(sweep.out)), summed(parts, "spent"), summed(parts, "counted"))


if __name__ == "__main__":
    import sweep_packing

    sweep_packing.main()  # by this name, not __main__, the pool's processes know what is here
