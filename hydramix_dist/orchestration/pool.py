"""Tasks on this machine's cores: a few processes, each one task at a time, stopped without losing a step.

Results arrive in whatever order tasks end. A worker that is killed costs the step it was in: its task is begun
again, from its last checkpoint, up to `ATTEMPTS` times.
"""

import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.orchestration.tasks import Task

ATTEMPTS = 3
_log = logging.getLogger("hydramix")


@dataclass(frozen=True)
class Ended:
    """A task that ended: its result, or the error in words."""

    key: str
    result: dict[str, Any] | None
    error: str | None


class Stop:
    """The request to stop, from Ctrl-C or SIGTERM, as one byte that all processes see.

    No event, whose lock a worker could be killed with, and whose lock a signal handler could find held by itself.
    """

    def __init__(self) -> None:
        self.flag: Any = multiprocessing.get_context("spawn").RawValue(ctypes.c_bool, False)

    @property
    def requested(self) -> bool:
        """Return whether a stop was asked for."""
        return bool(self.flag.value)

    def request(self) -> None:
        """Ask all trainings to save and end."""
        self.flag.value = True

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested:  # asked twice: do not wait for the save
            raise KeyboardInterrupt
        self.request()


def run_tasks(
    tasks: Mapping[str, Task],
    needs: Mapping[str, str],
    workers: int,
    stop: Stop,
    progress: Callable[[str, int, int], None],
) -> Iterator[Ended]:
    """Yield each task as it ends; a task in `needs` starts after the task it names, and fails with it.

    Raises Interrupted once the running tasks have saved, when `stop` was requested.
    """
    waiting, finished, killed = dict(tasks), dict[str, Ended](), dict.fromkeys(tasks, 0)
    while waiting:
        # What ran when a process was killed goes on alone, one after the other: then only the one at fault can be
        # killed again, and where memory ran out it has all of it.
        suspects = [key for key in waiting if killed[key]]
        alone = {key: waiting.pop(key) for key in suspects[:1]}
        lost = yield from _one_pool(tasks, alone or waiting, needs, finished, 1 if alone else workers, stop, progress)
        for key in lost:
            killed[key] += 1
            if killed[key] < ATTEMPTS:
                waiting[key] = tasks[key]
                continue
            reason = f"its process was killed {ATTEMPTS} times (often: memory ran out)"
            finished[key] = Ended(key, None, reason)
            yield finished[key]


def _one_pool(
    tasks: Mapping[str, Task],
    waiting: dict[str, Task],
    needs: Mapping[str, str],
    finished: dict[str, Ended],
    workers: int,
    stop: Stop,
    progress: Callable[[str, int, int], None],
) -> Generator[Ended, None, list[str]]:
    """Yield the tasks in `waiting` as they end; return the keys of those that were lost with a killed process."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()  # one a pool: a process killed while it writes leaves a queue that no other can write to
    with ProcessPoolExecutor(workers, context, _start_worker, (reports, stop.flag)) as pool:
        running: dict[Future[dict[str, Any]], str] = {}
        lost: list[str] = []
        try:
            while waiting or running:
                yield from _doomed(waiting, needs, finished)
                whole = _submit_ready(pool, waiting, needs, finished, running, workers, stop)
                _drain(reports, progress)
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        finished[key] = Ended(key, future.result(), None)
                    except (Interrupted, BrokenProcessPool):  # interrupted: by `stop`, or its process was terminated
                        lost.append(key)
                        continue
                    except UserError:  # no other training can mend this
                        raise
                    except Exception as error:
                        _log.exception("%s failed", tasks[key].name)
                        finished[key] = Ended(key, None, f"{type(error).__name__}: {error}")
                    yield finished[key]
                if stop.requested:
                    if not running:
                        raise Interrupted("stopped; everything so far is saved, the same command goes on from there")
                elif lost or not whole:
                    _log.warning("a worker process was killed; its training goes on from the last checkpoint")
                    return lost + list(running.values())
        except BaseException:
            stop.request()  # the pool waits for the trainings that run: they save and end
            raise
    return []


def _doomed(waiting: dict[str, Task], needs: Mapping[str, str], finished: dict[str, Ended]) -> Iterator[Ended]:
    """Yield, as failed, the waiting tasks whose need has failed."""
    for key in list(waiting):
        need = finished.get(needs.get(key, ""))
        if need is not None and need.error is not None:
            del waiting[key]
            finished[key] = Ended(key, None, f"not begun, for the training it needs failed: {need.error}")
            yield finished[key]


def _submit_ready(
    pool: ProcessPoolExecutor,
    waiting: dict[str, Task],
    needs: Mapping[str, str],
    finished: Mapping[str, Ended],
    running: dict[Future[dict[str, Any]], str],
    workers: int,
    stop: Stop,
) -> bool:
    """Start what can start; return False where the pool takes no more, for one of its processes was killed."""
    ready = [key for key in waiting if key not in needs or needs[key] in finished]
    for key in ready[: 0 if stop.requested else workers - len(running)]:
        # Workers are started in here and inherit what is blocked: Ctrl-C reaches the main process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running[pool.submit(_run, key, waiting[key])] = key
        except BrokenProcessPool:
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del waiting[key]
    return True


def _drain(reports: Any, progress: Callable[[str, int, int], None]) -> None:
    try:
        while True:
            progress(*reports.get_nowait())
    except queue.Empty:
        return


# --- in the worker process ---

_reports: Any = None
_stop_flag: Any = None
_leaving = threading.Event()  # this process is to end; the training it is in saves first
_busy = threading.Lock()


def _start_worker(reports: Any, stop_flag: Any) -> None:
    global _reports, _stop_flag
    _reports, _stop_flag = reports, stop_flag
    reports.cancel_join_thread()  # at the end nobody waits until progress is read
    signal.signal(signal.SIGTERM, lambda number, frame: _leaving.set())
    for target in (_leave_with_main_process, _exit_when_leaving):
        threading.Thread(target=target, daemon=True).start()


def _run(key: str, task: Task) -> dict[str, Any]:
    last = 0.0

    def progress(images: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.25 or images >= total:
            last = now
            _reports.put((key, images, total))

    with _busy:
        return task.run(progress, lambda: _leaving.is_set() or bool(_stop_flag.value))


def _leave_with_main_process() -> None:
    """Leave once the main process is gone, killed with -9: nobody else would end this process."""
    main_process = multiprocessing.parent_process()
    if main_process is not None:
        main_process.join()
        _leaving.set()


def _exit_when_leaving() -> None:
    """End this process, which otherwise waits for work for ever; between two trainings, or once one has saved."""
    _leaving.wait()
    with _busy:
        os._exit(1)
