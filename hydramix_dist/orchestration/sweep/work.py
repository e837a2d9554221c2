"""One training of a sweep in the process that Tune gives it: in a thread, with news for whoever asks."""

import faulthandler
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
from hydramix_dist.evaluation.metrics import score
from hydramix_dist.orchestration.launch import launch
from hydramix_dist.orchestration.ray_session import RaySession
from hydramix_dist.orchestration.sweep.design import Kind
from hydramix_dist.orchestration.tasks import ClassifierTask, Progress, ShouldStop, Task, dataset_of
from hydramix_dist.orchestration.train import finished_result
from hydramix_dist.store import Store
from hydramix_dist.store.lease import HeldError, exclusively
from hydramix_dist.telemetry import Sink, Value

Work = Callable[[Task, Progress, ShouldStop, Sequence[Sink]], dict[str, Any]]
Outcome = Literal["running", "done", "failed", "busy", "stopped", "away"]
_ARM_SECONDS = 5.0  # between two settings of the alarm that ends a process which hangs
_GRACE_SECONDS = 60.0  # a process that hangs within one call of a library is ended so much later
_log = logging.getLogger("hydramix")


class HangingError(RuntimeError):
    """A training gave no sign of progress for too long."""


@dataclass(frozen=True)
class Order:
    """What a process is to carry out. `pauses`: it waits at each validation to hear whether it goes on."""

    key: str
    kind: Kind
    task: Task
    work: Work
    pauses: bool
    silent_seconds: float


@dataclass
class News:
    """Where a training stands."""

    outcome: Outcome = "running"
    images: int = 0
    total: int = 0
    validated: list[tuple[int, float]] = field(default_factory=list)  # (images, accuracy) since the last news
    summary: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def alone(task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]) -> dict[str, Any]:
    """Return the result of a training in this process."""
    return task.run(progress, should_stop, sinks=sinks)


@dataclass(frozen=True)
class Together:
    """Carries out a training over several workers of Ray Train."""

    distributed: DistributedSettings
    resources: Mapping[str, float]  # of a worker

    def __call__(
        self, task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]
    ) -> dict[str, Any]:
        """Return the result of a training; its records stay in its folder."""
        return launch(task, self.distributed, RaySession(dict(self.resources), logs=None), progress, should_stop)


class Running:
    """A training that is under way in a thread."""

    def __init__(self, order: Order) -> None:
        """Begin."""
        self._order = order
        self._news = News()
        self._changed = threading.Condition()
        self._stop = self._go = False
        self._paused = False
        self._alive = self._armed = time.monotonic()
        self._arm()
        self._thread = threading.Thread(target=self._body, name=order.key, daemon=True)
        self._thread.start()

    def news(self, seconds: float) -> News:
        """Return what is new after `seconds`; earlier at the end, and at a validation that it pauses at.

        A training that paused at its last validation goes on. Raises HangingError where it makes no progress, after
        which this process is not to be used any more.
        """
        with self._changed:
            self._go = not self._news.validated  # what is not told yet is judged before it goes on
            self._changed.notify_all()
            until = time.monotonic() + seconds
            while self._news.outcome == "running" and not (self._order.pauses and self._news.validated):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            silent = time.monotonic() - self._alive
            if self._news.outcome == "running" and not self._paused and silent > self._order.silent_seconds:
                raise HangingError(f"no progress for {silent / 60:.1f} minutes; taken for hanging, and ended")
            news, self._news = self._news, News(self._news.outcome, self._news.images, self._news.total)
            return news

    def stop(self) -> bool:
        """Have the training save and end, wait for that as long as it shows progress, and return whether it has."""
        with self._changed:
            self._stop = self._go = True
            self._changed.notify_all()
        while self._thread.is_alive() and time.monotonic() - self._alive < self._order.silent_seconds:
            self._thread.join(1.0)
        return not self._thread.is_alive()

    # ---- in the thread

    def _body(self) -> None:
        order = self._order
        try:
            with exclusively(Store(order.task.folder_url)) as held:
                held.when_lost(self._lose)
                reused = order.work is alone and finished_result(order.task) is not None
                result = order.work(order.task, self._progress, lambda: self._stop, [_Validations(self._validated)])
            self._end("done", kept={**kept_of(order, result), "reused": reused})
        except HeldError:
            self._end("busy")
        except Interrupted:
            self._end("stopped")
        except StoreAwayError as error:  # no fault of the training
            self._end("away", error=str(error))
        except Exception as error:
            out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
            _log.error("%s failed\n%s", order.task.name, traceback.format_exc())
            told = isinstance(error, UserError)  # a sentence already
            reason = str(error) if told else f"{type(error).__name__}: {error}".strip().rstrip(":")
            self._end("failed", error=f"out of memory ({reason})" if out_of_memory else reason)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, outcome: Outcome, kept: dict[str, Any] | None = None, error: str | None = None) -> None:
        with self._changed:
            self._news.outcome, self._news.summary, self._news.error = outcome, kept or {}, error
            self._changed.notify_all()

    def _lose(self) -> None:
        self._stop = True

    def _progress(self, images: int, total: int) -> None:
        self._alive = time.monotonic()
        self._news.images, self._news.total = images, total
        if self._alive - self._armed > _ARM_SECONDS:
            self._arm()

    def _arm(self) -> None:
        """Set the alarm: a call that hangs without letting other threads run ends the process."""
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._order.silent_seconds + _GRACE_SECONDS, exit=True)

    def _validated(self, images: int, accuracy: float) -> None:
        with self._changed:
            self._news.validated.append((images, accuracy))
            self._changed.notify_all()
            if not self._order.pauses or self._stop:  # asked to stop, it would wait for nobody
                return
            self._go, self._paused = False, True
            faulthandler.cancel_dump_traceback_later()
            while not self._go:
                self._changed.wait()
            self._paused, self._alive = False, time.monotonic()
            self._arm()


@dataclass(frozen=True)
class _Validations:
    """A sink that tells of validation accuracies."""

    tell: Callable[[int, float], None]

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        """Take the values of one moment."""
        accuracy = values.get("validation_accuracy_ratio")
        if isinstance(accuracy, float):
            self.tell(images, accuracy)


def kept_of(order: Order, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of a sweep keeps of a result: scores, costs, no predictions.

    `seconds` of a process that trains on CPUs are those that it kept them busy, whatever else was running beside it;
    on a GPU, and of several workers, they are those by the clock.
    """
    kind, task = order.kind, order.task
    on_cpu = not torch.cuda.is_available() or task.runtime.device == "cpu"
    on_cpu = on_cpu and not isinstance(order.work, Together)
    kept: dict[str, Any] = {
        "seconds": result["cpu_seconds"] / task.runtime.threads if on_cpu else result["seconds"],
        "wall_seconds": result["seconds"],
        "images_seen": result["images_seen"],
        "peak_memory_bytes": result["peak_memory_bytes"],
    }
    if kind == "candidate":
        kept["value"] = result["validation_curve"][-1][1]
    if kind == "classifier" and isinstance(task, ClassifierTask):
        dataset = dataset_of(task.data)
        labels_N = torch.from_numpy(dataset.labels("test")[list(task.test_rows)])
        scores = score(torch.tensor(result["predictions"]), labels_N, dataset.classes)
        kept |= {"accuracy": scores.accuracy, "balanced_accuracy": scores.balanced_accuracy}
        kept |= {"test_images": len(task.test_rows), "generator_key": task.generator_key}
    return kept
