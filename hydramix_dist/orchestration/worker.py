"""What runs inside each worker of a training. Imports Ray at its top: import it late.

Ray Train runs the training in a thread of the worker and keeps the process's main thread for itself, where alone
Python delivers signals. So SIGTERM is taken there, before the training begins, and asked for in the training's loop.
"""

import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.execution.context import get_train_context

from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.desk import Worker
from hydramix_dist.orchestration.tasks import Task
from hydramix_dist.store import Store
from hydramix_dist.training.loop import NonFiniteLossError

EXCHANGE_SECONDS = 0.25  # between two words with the driver
_sigterm = threading.Event()
_at_work = threading.Event()


@dataclass(frozen=True)
class Order:
    """What a worker is to do: the task, DeepSpeed's configuration as `read_deepspeed` gave it, where to leave word."""

    task: Task
    deepspeed: dict[str, Any]
    desk: ActorHandle
    marker: str  # a file in the run folder that the driver has written
    on_gpu: bool  # as the driver has reserved


class LeavingError(RayActorError):  # type: ignore[misc]
    """This worker, or another one, had to leave, and all is saved. To Ray a preemption: no failure, it begins anew."""

    def __init__(self, reason: str | None) -> None:
        """Take why this worker had to; None: another one had to."""
        super().__init__(error_msg=reason or "left with another worker", preempted=True)
        self.own = reason is not None


def train(order: Order) -> dict[str, Any]:
    """Return the task's result, on each worker. What it raises goes through `Reporter`, and may be tried again."""
    context = ray.train.get_context()
    rank, of = context.get_world_rank(), context.get_world_size()
    ray.get(order.desk.join.remote(_describe(rank, of)))
    _at_work.set()
    try:
        with _Line(order.desk, rank) as line:
            return _carry_out(order, line)
    except Interrupted as error:
        if ray.get(order.desk.end.remote(error)):
            raise
        raise LeavingError(_why_leaving()) from error
    except (UserError, NonFiniteLossError) as error:  # would happen again
        ray.get(order.desk.end.remote(error))
        raise
    finally:
        _at_work.clear()


def _carry_out(order: Order, line: "_Line") -> dict[str, Any]:
    from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
    from hydramix_dist.training.environment import warn_of_slow_bf16

    task = order.task
    torch.set_num_threads(task.runtime.threads)
    # Not what torch sees here: a worker without a GPU of its own may see one, and would meet the others on it.
    device = ray.train.torch.get_device() if order.on_gpu else torch.device("cpu")
    if not Store(task.folder_url).exists(order.marker):
        raise UserError(
            f"the run folder {task.folder_url} is another one on node {socket.gethostname()} than where the command "
            "was given; choose a folder that all nodes share"
        )
    warn_of_slow_bf16(task.runtime, device)
    return task.run(line.progress, line.should_stop, DeepSpeedGroup(order.deepspeed, device))


def _describe(rank: int, of: int) -> Worker:
    log = ray._private.worker.global_worker.get_err_file_path()
    node = ray.get_runtime_context().get_node_id()
    return Worker(rank, of, os.getpid(), ray.util.get_node_ip_address(), node, log)


class _Line:
    """The line of rank 0 to the driver, served by a thread of its own, so that no step waits for it.

    It tells progress and warnings, and hears whether to stop. Other ranks hear of that from rank 0, in the loop.
    """

    def __init__(self, desk: ActorHandle, rank: int) -> None:
        self._desk, self._used = desk, rank == 0
        self._progress: tuple[int, int] | None = None
        self._warnings = _Warnings()
        self._stop = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def progress(self, images: int, total: int) -> None:
        """Note how far the training is."""
        self._progress = (images, total)

    def should_stop(self) -> bool:
        """Return whether this worker should save and stop: the driver wants it, or the process has to leave."""
        return self._stop or _why_leaving() is not None

    def __enter__(self) -> "_Line":
        if self._used:
            logging.getLogger("hydramix").addHandler(self._warnings)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._used:
            self._over.set()
            self._thread.join()
            logging.getLogger("hydramix").removeHandler(self._warnings)

    def _serve(self) -> None:
        over = False
        while not over:
            over = self._over.wait(EXCHANGE_SECONDS)
            try:
                self._stop = ray.get(self._desk.exchange.remote(self._progress, self._warnings.taken()))
            except RayError:  # the driver is gone: save and end
                self._stop = True


class _Warnings(logging.Handler):
    """Collects what the training warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())

    def taken(self) -> list[str]:
        """Return the texts since the last call."""
        with self.lock:  # type: ignore[union-attr]  # every handler has one, and emits under it
            texts, self._texts = self._texts, []
        return texts


# --- having to leave ---


def _why_leaving() -> str | None:
    """Return why this process has to leave, None where it has not."""
    if _sigterm.is_set():
        return "was sent SIGTERM"
    drained = get_train_context().preemption_context.preemption_info
    if drained is not None and ray.train.get_context().get_world_rank() in drained.preempted_ranks:
        return "its node is about to go"
    return None


def heed_sigterm() -> None:
    """Take SIGTERM as the request to save and leave while the training is at work; asked twice, leave at once."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        if _at_work.is_set() and not _sigterm.is_set():
            _sigterm.set()
        elif callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
