"""A process pool that gives results in order, keeps few batches in flight, and leaves no orphans."""

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

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], batches: Iterable[T], workers: int) -> Iterator[R]:
    """Yield function(batch) for each batch, in order, computed by `workers` processes; one worker means this process.

    Processes are spawned, not forked: a fork copies the locks of running threads. Raises UserError where one died.
    """
    if workers == 1:
        yield from map(function, batches)
        return
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[R]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent) as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(function, batch))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process ended early, most likely for lack of memory; "
                "run the same command again with fewer workers, it goes on where it was"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even where it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
