"""Tasks on this machine's cores: a few processes, each one task at a time, stopped without losing a step.

Results arrive in whatever order tasks end. A worker that is killed costs the step it was in: its task is begun
again, from its last checkpoint, up to `ATTEMPTS` times.
"""

import logging
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping
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
    """The request to stop, from Ctrl-C or SIGTERM, as one event that all processes see."""

    def __init__(self) -> None:
        self.event = multiprocessing.get_context("spawn").Event()

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        if self.event.is_set():  # asked twice: do not wait for the save
            raise KeyboardInterrupt
        self.event.set()


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
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    waiting, finished, attempts = dict(tasks), dict[str, Ended](), dict.fromkeys(tasks, 0)
    while waiting:
        # Workers inherit a standard input they never read, and a Ctrl-C that only the main process acts on.
        with ProcessPoolExecutor(workers, context, _start_worker, (reports, stop.event, os.getpid())) as pool:
            running: dict[Future[dict[str, Any]], str] = {}
            broken = False
            while (waiting or running) and not broken:
                yield from _doomed(waiting, needs, finished)
                _submit_ready(pool, waiting, needs, finished, running, workers, stop)
                _drain(reports, progress)
                for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        finished[key] = Ended(key, future.result(), None)
                    except Interrupted:
                        continue
                    except BrokenProcessPool:
                        broken = True
                        attempts[key] += 1
                        if attempts[key] < ATTEMPTS:
                            waiting[key] = tasks[key]
                            continue
                        reason = f"its process was killed {ATTEMPTS} times (often: memory ran out; try workers=1)"
                        finished[key] = Ended(key, None, reason)
                    except UserError:
                        stop.event.set()  # no other training can mend this: the running ones save and end
                        raise
                    except Exception as error:
                        _log.exception("%s failed", tasks[key].name)
                        finished[key] = Ended(key, None, f"{type(error).__name__}: {error}")
                    yield finished[key]
                if stop.event.is_set() and not running:
                    raise Interrupted("stopped; everything so far is saved")
            if broken:
                _log.warning("a worker process was killed; its training goes on from the last checkpoint")
                waiting.update({key: tasks[key] for key in running.values()})


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
) -> None:
    for key in list(waiting):
        if len(running) >= workers or stop.event.is_set():
            return
        if key not in needs or needs[key] in finished:
            running[pool.submit(_run, key, waiting.pop(key))] = key


def _drain(reports: Any, progress: Callable[[str, int, int], None]) -> None:
    try:
        while True:
            progress(*reports.get_nowait())
    except queue.Empty:
        return


# --- in the worker process ---

_reports: Any = None
_stop_event: Any = None
_main_process = 0


def _start_worker(reports: Any, stop_event: Any, main_process: int) -> None:
    global _reports, _stop_event, _main_process
    _reports, _stop_event, _main_process = reports, stop_event, main_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop_event.set())


def _run(key: str, task: Task) -> dict[str, Any]:
    last = 0.0

    def progress(images: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.25 or images >= total:
            last = now
            _reports.put((key, images, total))

    # A main process killed with -9 leaves its workers orphaned: they save and end.
    return task.run(progress, lambda: _stop_event.is_set() or os.getppid() != _main_process)
