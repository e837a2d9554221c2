"""From the command to the first step of a distributed training, and from a worker's death to the next completed step.

A small generator on the built-in images over 2 workers, which Ray Train starts as `hydramix train` does. Once it has
saved and gone on for some steps, worker 1 gets a SIGKILL; Ray notices, starts both workers anew, and the training goes
on from its checkpoint. Each round is a process of its own, with its own Ray and run folder.
Run: `python benchmarks/recovery.py` (three minutes).
"""

import argparse
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import numpy as np

from hydramix_dist.checkpoint.commit import committed
from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import (
    DiscriminatorSettings,
    GeneratorNetworkSettings,
    GeneratorSettings,
    RuntimeSettings,
)
from hydramix_dist.config.training import GeneratorTrainingSettings
from hydramix_dist.data.builtin import build_photo_patches
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import Interrupted
from hydramix_dist.orchestration.launch import launch
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.orchestration.tasks import GeneratorTask
from hydramix_dist.orchestration.train import make_task
from hydramix_dist.store import Store

WORKERS = 2
STEPS = 20_000  # more than will be taken
STEPS_A_SAVE = 50
STEPS_TO_REPEAT = 10  # since a save, when the worker is killed
STEPS_AFTER = 5


@dataclass(frozen=True)
class Mark:
    """Something that a worker did, and when."""

    what: str  # begin, engine, step
    rank: int
    process: int
    time: float
    images: int = 0


@dataclass(frozen=True)
class Marked:
    """A generator's training that leaves a mark in a file whenever a worker begins, has an engine, or takes a step."""

    task: GeneratorTask
    file: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.task, name)

    def run(self, progress: Callable[[int, int], None], should_stop: Callable[[], bool], group: Any) -> dict[str, Any]:
        make, begun = group.engine, False
        self._mark("begin", group.rank)

        def engine(*arguments: Any) -> Any:
            made = make(*arguments)
            self._mark("engine", group.rank)
            return made

        def step(images: int, total: int) -> None:
            nonlocal begun
            if begun:  # the first word, before any step, says where the training goes on
                self._mark("step", group.rank, images)
            begun = True
            progress(images, total)

        group.engine = engine
        return self.task.run(step, should_stop, group)

    def _mark(self, what: str, rank: int, images: int = 0) -> None:
        line = json.dumps(vars(Mark(what, rank, os.getpid(), time.time(), images)))
        with Path(self.file).open("a", encoding="utf-8") as file:  # short lines of one process do not mix with others'
            file.write(line + "\n")

    def marks(self, what: str) -> list[Mark]:
        """Return the marks of one kind so far, oldest first."""
        if not Path(self.file).exists():
            return []
        lines = Path(self.file).read_text(encoding="utf-8").splitlines()
        return sorted((Mark(**record) for record in map(json.loads, lines) if record["what"] == what), key=mark_time)


def mark_time(mark: Mark) -> float:
    return mark.time


class FirstWarning(logging.Handler):
    """Keeps the time of the first warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.time: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.time = self.time or record.created


def round_of(data: str, folder: Path) -> dict[str, float]:
    """Return the seconds of each part of one start and one recovery."""
    folder.mkdir()
    settings = GeneratorTrainingSettings(
        generator=GeneratorSettings(
            network=GeneratorNetworkSettings(side=32, width=16),
            discriminator=DiscriminatorSettings(width=16),
            batch=8,
            images=8 * STEPS,
        ),
        runtime=RuntimeSettings(device="cpu", checkpoints=STEPS // STEPS_A_SAVE),
        distributed=DistributedSettings(workers=WORKERS),
    )
    made: Any = make_task(settings, Dataset.open(data), Store(folder / "run"))
    task: Any = Marked(made, str(folder / "marks"))
    warning, done, killed = FirstWarning(), threading.Event(), list[float]()
    logging.getLogger("hydramix").addHandler(warning)
    thread = threading.Thread(target=kill_and_wait, args=(task, killed, done), daemon=True)
    thread.start()
    started = time.time()
    with ray_session(settings.distributed, settings.runtime, None) as session:
        up = time.time()
        try:
            launch(task, settings.distributed, session, lambda images, total: None, done.is_set)
        except Interrupted:
            stopped = time.time()
        session.keep_logs = False  # kept after a loss, for whoever looks into it
    closed = time.time()
    logging.getLogger("hydramix").removeHandler(warning)

    (kill,), noticed = killed, warning.time
    assert noticed is not None, "no word of the lost worker"
    begins, engines, steps = (task.marks(what) for what in ("begin", "engine", "step"))
    before, after = [s for s in steps if s.time < kill], [s for s in steps if s.time > begins[WORKERS].time]
    first, again = engines[: len(engines) // 2], engines[len(engines) // 2 :]
    return {
        "start: Ray": up - started,
        "start: workers, their imports, torch.distributed": begins[WORKERS - 1].time - up,
        "start: images, engines": first[-1].time - begins[WORKERS - 1].time,
        "start: first step": before[0].time - first[-1].time,
        "start in all": before[0].time - started,
        "a later step": float(np.median(np.diff([s.time for s in before]))),
        "killed: noticed": noticed - kill,
        "killed: new workers": begins[2 * WORKERS - 1].time - noticed,
        "killed: checkpoint, engines": again[-1].time - begins[2 * WORKERS - 1].time,
        "killed: first step": after[0].time - again[-1].time,
        "killed to the next step in all": after[0].time - kill,
        "steps taken again": (before[-1].images - after[0].images) / settings.generator.batch + 1,
        "end: save, workers": stopped - max(s.time for s in steps),
        "end: Ray": closed - stopped,
    }


def kill_and_wait(task: Marked, killed: list[float], done: threading.Event) -> None:
    """Kill worker 1 some steps after the first save, wait for some steps of the next workers, and say so."""
    wait_for(lambda: bool(committed(Store(task.folder_url))))
    taken = len(task.marks("step"))
    wait_for(lambda: len(task.marks("step")) >= taken + STEPS_TO_REPEAT)
    victim = next(mark for mark in task.marks("begin") if mark.rank == 1)
    os.kill(victim.process, signal.SIGKILL)
    killed.append(time.time())
    wait_for(lambda: len(task.marks("begin")) == 2 * WORKERS)
    again = task.marks("begin")[-1].time
    wait_for(lambda: sum(mark.time > again for mark in task.marks("step")) >= STEPS_AFTER)
    done.set()


def wait_for(what: Callable[[], bool]) -> None:
    while not what():
        time.sleep(0.05)


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--repeats", type=int, default=3, help="starts and kills (default 3)")
    repeats = command.parse_args().repeats
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_photo_patches(folder / "images")
        import_dataset(str(folder / "images"), str(folder / "data"))
        Dataset.open(str(folder / "data")).ensure_segments(32, GeneratorSettings().segments)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as anew:
            places = [folder / str(number) for number in range(repeats)]
            rounds = list(anew.map(round_of, [str(folder / "data")] * repeats, places))
    seconds = {part: np.array([taken[part] for taken in rounds]) for part in rounds[0]}
    common.show(
        f"a training over {WORKERS} workers, seconds",
        [{"part": part, "median (quartiles)": common.quartiles(taken)} for part, taken in seconds.items()],
    )
    common.record("recovery", repeats=repeats, seconds={p: float(np.median(taken)) for p, taken in seconds.items()})


if __name__ == "__main__":
    import recovery

    recovery.main()  # by this name, not __main__, the processes of a round know what is here
