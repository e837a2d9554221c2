"""One training, cut to seconds: how long its steps, evaluations and saves take, and what memory its process needs."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hydramix_dist.data.held_out import Streamed
from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
from hydramix_dist.orchestration.tasks import (
    ClassifierTask,
    GeneratorTask,
    Progress,
    ShouldStop,
    Task,
    _held_out,
)
from hydramix_dist.telemetry import Value
from hydramix_dist.training import environment
from hydramix_dist.training.loop import prepare_device

SECONDS = 2.0  # of steps, after one that is not counted
LEAST_STEPS = 3
SCORED = 500  # held-out images of each split at most: the time of an evaluation grows with their number
_LOOK_SECONDS = 0.05  # between two looks at the memory
T = TypeVar("T", bound=Task)
_ACCURACIES = {"test_accuracy_ratio", "validation_accuracy_ratio"}


@dataclass(frozen=True)
class Measurement:
    """A training to measure, as a task for the pool: of several, each runs in the process the others ran in.

    `folder` lies beside those of the others, and in nothing else. `generator` is trained for one step where `task`
    needs it; with None, the task's own has to be finished.
    """

    name: str
    task: Task
    generator: GeneratorTask | None
    folder: str

    def run(self, progress: Progress, should_stop: ShouldStop) -> dict[str, Any]:
        """Return `step_seconds`, `evaluation_seconds` (with the save), `memory_bytes`, `device_bytes` and
        `device_total_bytes` (None on a CPU). Where memory ran out: `error` alone, in words. Where the process of
        another one beside it was killed: `killed` alone, that one's folder.

        Raises Interrupted when asked to stop, else as the training itself.
        """
        at_work = Path(self.folder).with_name("at work")
        if at_work.exists():  # a process was killed: no second try, which might take others along
            return {"killed": at_work.read_text()}
        at_work.write_text(Path(self.folder).name)
        try:
            return self._run(should_stop)
        except StoreAwayError:
            raise
        except UserError as error:
            raise UserError(f"the training '{self.name}': {error}") from error
        finally:
            at_work.unlink()

    def _run(self, should_stop: ShouldStop) -> dict[str, Any]:
        import ray.tune  # noqa: F401 - in memory wherever trials run

        memory = _Memory(prepare_device(self.task.runtime))
        try:
            with memory.watched():
                return self._measured(should_stop, memory) | memory.values()
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            return {"error": str(error).splitlines()[0]}

    def _measured(self, should_stop: ShouldStop, memory: "_Memory") -> dict[str, Any]:
        task = _cut(self.task, steps=1_000_000, checkpoints=1, folder=f"{self.folder}/steps")
        if isinstance(task, ClassifierTask) and self.generator is not None:
            generator = _cut(self.generator, steps=1, checkpoints=1, folder=f"{self.folder}/generator")
            generator.run(lambda done, total: None, should_stop)
            memory.look()
            task = replace(task, generator_url=generator.folder_url, generator_key="generator")
        steps = _Clock(should_stop)
        with contextlib.suppress(Interrupted):  # by the clock itself, and it has saved
            task.run(steps.progress, steps.should_stop, sinks=(steps,))
        memory.look()
        if should_stop():
            raise Interrupted("stopped while trainings were measured")
        seconds = steps.save_seconds
        if isinstance(task, ClassifierTask):
            seconds += self._evaluation_seconds(task, should_stop)
            memory.look()
        return {"step_seconds": steps.step_seconds, "evaluation_seconds": seconds}

    def _evaluation_seconds(self, task: ClassifierTask, should_stop: ShouldStop) -> float:
        """Return the time of one evaluation on all held-out images, from one on some of them."""
        scored = replace(task, test_rows=task.test_rows[:SCORED], validation_rows=task.validation_rows[:SCORED])
        count = len(scored.test_rows) + len(scored.validation_rows)
        if not count:
            return 0.0
        # The second of two: the first one makes what later ones find made.
        scored = _cut(scored, steps=2, checkpoints=2, folder=f"{self.folder}/evaluations")
        clock = _Clock(should_stop)
        scored.run(clock.progress, should_stop, sinks=(clock,))
        factor = (len(task.test_rows) + len(task.validation_rows)) / count
        return clock.evaluation_seconds * factor + _streaming_seconds(task)


class _Clock:
    """Sees a training's progress and records, and asks it to stop when its steps have been seen for long enough."""

    def __init__(self, should_stop: ShouldStop) -> None:
        self._should_stop = should_stop
        self._times: list[float] = []  # at the beginning, and after each step
        self._saves: dict[str, float] = {}
        self.evaluation_seconds = 0.0

    @property
    def step_seconds(self) -> float:
        """Return the mean time of the steps after the first one."""
        return (self._times[-1] - self._times[1]) / (len(self._times) - 2)

    @property
    def save_seconds(self) -> float:
        """Return the time the save took: gathering the state, then writing it beside the training."""
        return sum(self._saves.values())

    def progress(self, images: int, total: int) -> None:
        """Take the end of a step."""
        self._times.append(time.monotonic())

    def should_stop(self) -> bool:
        """Return whether the steps so far are enough, or somebody else asks for an end."""
        enough = len(self._times) >= 2 + LEAST_STEPS and self._times[-1] - self._times[1] >= SECONDS
        return enough or self._should_stop()

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        """Take a record: an evaluation is over when its accuracies come."""
        if _ACCURACIES & values.keys():
            self.evaluation_seconds = time.monotonic() - self._times[-1]
        for name in ("checkpoint_seconds", "checkpoint_stall_seconds"):
            seconds = values.get(name)
            if isinstance(seconds, float):
                self._saves[name] = seconds


class _Memory:
    """The most memory that this process had at a time, on the host and on its device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._host, self._on_device = device, 0, 0
        self._over = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the host's memory all the time: each training on a CPU begins a peak of its own."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def look(self) -> None:
        """Take the device's memory since the last training began."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            # The context and loaded kernels; other processes' memory too, there is no telling them apart.
            outside = total - free - torch.cuda.memory_reserved(self._device)
            self._on_device = max(self._on_device, torch.cuda.max_memory_reserved(self._device) + outside)

    def values(self) -> dict[str, int | None]:
        """Return the host's bytes, the device's, and how many the device has in all."""
        self._look_at_host()
        gpu = self._device.type == "cuda"
        return {
            "memory_bytes": self._host,
            "device_bytes": self._on_device if gpu else None,
            "device_total_bytes": torch.cuda.mem_get_info(self._device)[1] if gpu else None,
        }

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look_at_host()

    def _look_at_host(self) -> None:
        self._host = max(self._host, environment.peak_memory_bytes(torch.device("cpu")))


def _cut(task: T, *, steps: int, checkpoints: int, folder: str) -> T:
    """Return the training with another length, in another folder, at a rate at which no loss runs away."""
    runtime = task.runtime.model_copy(update={"checkpoints": checkpoints})
    slow = {"optimizer": task.settings.optimizer.model_copy(update={"lr": 1e-4})}
    settings = task.settings.model_copy(update={"images": steps * task.settings.batch, **slow})
    # Without a run's name: its metrics are nobody's.
    where = {"folder_url": folder, "run_name": None}
    return replace(task, settings=settings, runtime=runtime, **where)  # type: ignore[arg-type]  # of its kind


def _streaming_seconds(task: ClassifierTask) -> float:
    """Return the time to read all held-out images, of splits that do not stay in memory between evaluations."""
    seconds = 0.0
    for split, rows in (("test", task.test_rows), ("train", task.validation_rows)):
        held = _held_out(task.data, split, rows, task.settings.side) if rows else None
        if held is not None and isinstance(held.images, Streamed):
            began = time.monotonic()
            read = sum(map(len, held.batches(torch.arange(SCORED))))
            seconds += (time.monotonic() - began) * len(rows) / read
    return seconds


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator has no exception of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
