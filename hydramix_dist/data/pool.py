"""Worker processes that give results in order, keep few batches in flight, and leave no orphans."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from hydramix_dist.errors import UserError

_WORTH_A_PROCESS = 2000  # images; a process first imports for half a second: NumPy, SciPy, Pillow, pyarrow

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(images: int) -> int:
    """Return how many processes are worth starting to import so many images, at most one a usable core."""
    return min(usable_cores(), 1 + images // _WORTH_A_PROCESS)


class Workers:
    """A number of processes that serve one map after another, for a `with` block; one means this process alone.

    Processes are spawned, not forked: a fork copies the locks of running threads.
    """

    def __init__(self, count: int, *functions: Callable[..., object]) -> None:
        """Start them, and let them import what `functions` need while the caller goes on."""
        self.count = count
        self._executor: ProcessPoolExecutor | None = None
        if count > 1:
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(count, spawn, initializer=_begin, initargs=functions)
            for _ in range(count):
                self._executor.submit(int)  # nothing to do, but an executor starts a process only for a call

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def ordered_map(self, function: Callable[[T], R], batches: Iterable[T]) -> Iterator[R]:
        """Yield function(batch) for each batch, in order. Raises UserError where a process died."""
        if self._executor is None:
            yield from map(function, batches)
            return
        pending: deque[Future[R]] = deque()
        try:
            for batch in batches:
                pending.append(self._executor.submit(function, batch))
                if len(pending) > 2 * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process ended early, most likely for lack of memory; "
                "run the same command again with fewer workers, it goes on where it was"
            ) from error


def _begin(*_: object) -> None:
    """Set up a worker process. The arguments do nothing but come in: with a function comes the module it is of."""
    # glibc keeps freed memory up to twice the largest block freed so far, and gives the rest back to the system. A
    # process this small gave back each image's arrays and fetched them page by page: a seventh of segmentation's time.
    bytes(16 * 2**20)
    _follow_parent()


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even where it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
