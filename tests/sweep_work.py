"""Sweeps for tests with real Ray: what they are made of, trainings that are counted or meet a fault, and a driver.

What stands for a training is pickled by its name, so that Ray's processes find it here.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import tiny
from sweep_books import tiny_images

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
from hydramix_dist.orchestration.pool import Ended
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.run import Sweep, run_sweep
from hydramix_dist.orchestration.sweep.standing import read_standing
from hydramix_dist.orchestration.sweep.watch import Watch
from hydramix_dist.orchestration.sweep.work import Work, alone
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask, Progress, ShouldStop, Task
from hydramix_dist.orchestration.train import finished_result
from hydramix_dist.store import Store
from hydramix_dist.telemetry import Sink

HANGING_SECONDS = 3600
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from sweep_work import main
sys.exit(main(sys.argv[2]))
"""


@lru_cache
def data_of(base: Path) -> str:
    """Return the URL of a tiny data set with images enough to choose settings by, made once in a test session."""
    return tiny_images(base / "for-sweeps").store.url


def tree_of(data: Path | str, **changes: Any) -> dict[str, Any]:
    """Return the settings of one seed at N = 5, two trainings at a time, with `changes` to the top keys."""
    return tiny.PILOT | {"data": [str(data)], "seeds": [0]} | changes


def sweep_of(tree: Mapping[str, Any], out: Path | str, shared: Path | str) -> Sweep:
    """Return the sweep of these settings in a folder."""
    settings = build(SweepSettings, dict(tree), "test")
    return Sweep(settings, expanded(settings, "test"), Store(out), Store(shared), "test")


@dataclass
class Quiet:
    """Shows nothing, and keeps what was said."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def planned(self, names: Mapping[str, str]) -> None:
        pass

    def progress(self, key: str, done: int, total: int) -> None:
        pass

    def ended(self, ended: Ended) -> None:
        pass

    def look(self, book: Book, watch: Watch) -> None:
        pass


# ---- what stands for a training


@dataclass(frozen=True)
class Counted:
    """The real training, with a line in a file when it is begun and when it is finished.

    One that is asked for though it is finished is no training, and is not counted; was the process killed between its
    result and the line, the line is made up for. A generator waits for the file `gate`, where one is named.
    """

    file: Path
    work: Work = alone
    gate: Path | None = None

    def __call__(
        self, task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]
    ) -> dict[str, Any]:
        name, to_do = Store(task.folder_url).name, finished_result(task) is None
        if to_do:
            self._note("begun", name)
            if self.gate is not None and isinstance(task, GeneratorTask):
                tiny.wait_for(self.gate.exists, 240)
        result = self.work(task, progress, should_stop, sinks)
        if to_do or not self.of("finished")[name]:
            self._note("finished", name)
        return result

    def of(self, what: str) -> Counter[str]:
        """Return how often each training was begun, or finished."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return Counter(name for word, name in (line.split(" ", 1) for line in lines) if word == what)

    def _note(self, what: str, name: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{what} {name}\n")


def quick(task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]) -> dict[str, Any]:
    """Return at once what a training of no length could have come to."""
    progress(1, 1)
    cost = {"seconds": 0.1, "cpu_seconds": 0.1, "images_seen": 1, "peak_memory_bytes": 1}
    predictions = [0] * len(task.test_rows) if isinstance(task, ClassifierTask) else []
    return cost | {"predictions": predictions, "validation_curve": [[1, 0.5]], "test_curve": []}


@dataclass(frozen=True)
class Faulty:
    """Carries each training out at once, but for those that meet a fault, named by the arm; a generator always fails.

    `killed` and what hangs do so at the first attempt alone.
    """

    folder: Path  # a line with the process id for each attempt, in a file by arm

    def attempts(self, arm: str) -> list[int]:
        """Return the process of each attempt."""
        path = self.folder / arm
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def __call__(
        self, task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]
    ) -> dict[str, Any]:
        arm = task.arm if isinstance(task, ClassifierTask) else "generator"
        first = not self.attempts(arm)
        with (self.folder / arm).open("a") as file:
            file.write(f"{os.getpid()}\n")
        progress(1, 2)
        if arm == "killed" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        if arm == "away" and first:
            raise StoreAwayError("no answer")
        if arm == "memory":
            raise MemoryError("no such luck")
        if arm in ("fails", "generator"):
            raise ValueError(f"the {arm} has no such luck")
        if arm == "sleeps" and first:
            time.sleep(HANGING_SECONDS)
        if arm == "holds" and first:
            ctypes.PyDLL(None).sleep(HANGING_SECONDS)  # a C call that lets no other thread run
        if arm == "waits":
            tiny.wait_for(should_stop, 120)
            raise Interrupted("saved")
        return quick(task, progress, should_stop, sinks)


# ---- drivers


def drive(
    tree: Mapping[str, Any], out: Path | str, shared: Path | str, count: Path, gate: Path | None = None
) -> subprocess.Popen[str]:
    """Start a driver in a process group of its own: a sweep of real trainings, counted in a file."""
    order = {"tree": dict(tree), "out": str(out), "shared": str(shared), "count": str(count)}
    order |= {"gate": gate and str(gate)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), json.dumps(order)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def main(order: str) -> int:
    """Be a driver; return the exit code that the command would end with."""
    given = json.loads(order)
    work = Counted(Path(given["count"]), gate=given["gate"] and Path(given["gate"]))
    try:
        standing = run_sweep(sweep_of(given["tree"], given["out"], given["shared"]), Quiet(), work=work)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        return 130
    return 1 if {"failed", "left"} & set(standing.counts) else 0


def outcome(out: Path | str) -> dict[str, Any]:
    """Return all that a sweep came to but times: states, scores, choices, weights."""
    standing = read_standing(Store(out))
    scores = ("accuracy", "balanced_accuracy", "value", "images_seen", "test_images", "generator_key")
    return {
        "state": standing.state,
        "trainings": {
            key: (line.state, {name: line.result[name] for name in scores if name in line.result})
            for key, line in standing.lines.items()
        },
        "choices": {
            name: tuple(event[fact] for fact in ("values", "score", "candidates"))
            for name, event in standing.chosen.items()
        },
        "weights": tiny.weights_of(out),
    }
