"""Tasks on this machine's cores: a few processes, each one task at a time, stopped without losing a step.

Results arrive in whatever order tasks end. A worker that is killed costs the step it was in: its task is begun
again, from its last checkpoint, up to `ATTEMPTS` times. Each worker has a pipe of its own and no lock in common with
others, so that none can be killed while it holds what others wait for.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
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

    No event: a worker could be killed holding its lock, and a signal handler could meet the lock it itself holds.
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

    Raises Interrupted once the running tasks have saved, when `stop` was requested, and UserError as a task does.
    """
    waiting, finished, killed = dict(tasks), dict[str, Ended](), dict.fromkeys(tasks, 0)
    crew: list[_Worker] = []
    try:
        while True:
            yield from _doomed(waiting, needs, finished)
            if not stop.requested:
                ready = [key for key in waiting if key not in needs or needs[key] in finished]
                _hand_out(ready, waiting, crew, workers, stop)
            if all(worker.key is None for worker in crew):
                if not waiting:
                    return
                raise Interrupted("stopped; everything so far is saved, the same command goes on from there")
            for worker, kind, value in _heard(crew):
                key = worker.key
                if kind == "gone":
                    crew.remove(worker)
                if key is None:
                    continue
                if kind == "progress":
                    progress(key, *value)
                    continue
                worker.key = None
                if kind in ("bad input", "store away"):  # no other training can mend it
                    raise UserError(value) if kind == "bad input" else StoreAwayError(value)
                if kind == "gone":
                    killed[key] += 1
                    _log.warning("the process of %s was killed (%s)", tasks[key].name, value)
                if kind == "stopped" or (kind == "gone" and killed[key] < ATTEMPTS):
                    waiting[key] = tasks[key]  # to go on from its last checkpoint
                    continue
                finished[key] = _end(key, tasks[key].name, kind, value)
                yield finished[key]
    except BaseException:
        stop.request()  # who is still at work saves and ends
        raise
    finally:
        for worker in crew:
            worker.dismiss()


def _doomed(waiting: dict[str, Task], needs: Mapping[str, str], finished: dict[str, Ended]) -> Iterator[Ended]:
    """Yield, as failed, the waiting tasks whose need has failed."""
    for key in list(waiting):
        need = finished.get(needs.get(key, ""))
        if need is not None and need.error is not None:
            del waiting[key]
            finished[key] = Ended(key, None, f"not begun, for the training it needs failed: {need.error}")
            yield finished[key]


def _hand_out(ready: list[str], waiting: dict[str, Task], crew: list["_Worker"], workers: int, stop: Stop) -> None:
    """Give tasks to idle workers, and to new ones while there are fewer than `workers`."""
    idle = [worker for worker in crew if worker.key is None]
    for key in ready:
        if not idle and len(crew) == workers:
            return
        if not idle:
            idle.append(_Worker(stop))
            crew.append(idle[-1])
        idle.pop().begin(key, waiting.pop(key))


def _end(key: str, name: str, kind: str, value: Any) -> Ended:
    if kind == "done":
        return Ended(key, value, None)
    if kind == "gone":
        return Ended(key, None, f"its process was killed {ATTEMPTS} times (often: memory ran out; try workers=1)")
    reason, trace = value
    _log.error("%s failed\n%s", name, trace)
    return Ended(key, None, reason)


class _Worker:
    """A process that carries out one task at a time; `key` names it, None while it has none."""

    def __init__(self, stop: Stop) -> None:
        context = multiprocessing.get_context("spawn")
        self.key: str | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, stop.flag, os.getpid()))
        # A process inherits what is blocked: Ctrl-C reaches the main process alone. The first process would have
        # multiprocessing start its tracker, which unblocks it again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # the process alone holds that end: when it dies, the pipe says so

    def begin(self, key: str, task: Task) -> None:
        self.key = key
        with contextlib.suppress(BrokenPipeError):  # died while idle: heard of as any other death
            self.pipe.send(task)

    def dismiss(self) -> None:
        """Let the process end, once it has saved, and wait for that."""
        self.pipe.close()
        self.process.join()


def _heard(crew: list[_Worker]) -> Iterator[tuple[_Worker, str, Any]]:
    """Yield (worker, kind, value) for each worker that has something to say, or is gone; wait for it a little."""
    pipes = {worker.pipe: worker for worker in crew}
    for pipe in wait_for(list(pipes), timeout=0.2):
        worker = pipes[pipe]  # type: ignore[index]  # no sockets or handles among them
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            worker.dismiss()
            kind, value = "gone", f"exit code {worker.process.exitcode}"
        yield worker, kind, value


# --- in the worker process ---


def _work(pipe: Connection, stop_flag: Any, main_process: int) -> None:
    """Carry out tasks until the main process closes the pipe, is gone, or this process is terminated."""
    leaving = False

    def leave(number: int, frame: object) -> None:
        nonlocal leaving
        leaving = True

    def should_stop() -> bool:
        # A main process killed with -9 leaves its workers orphaned: they save and end.
        return leaving or bool(stop_flag.value) or os.getppid() != main_process

    signal.signal(signal.SIGTERM, leave)
    # A pipe that ends, breaks or is reset: the main process is gone, or waits for nothing more.
    with contextlib.suppress(EOFError, OSError):
        while not leaving:
            pipe.send(_carry_out(pipe.recv(), pipe, should_stop))


def _carry_out(task: Task, pipe: Connection, should_stop: Callable[[], bool]) -> tuple[str, Any]:
    """Return how a task ended, as (kind, plain value): not every exception survives the way through a pipe."""
    last = 0.0

    def progress(images: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.25 or images >= total:
            last = now
            with contextlib.suppress(OSError):  # nobody is there to see it, but the task must still save
                pipe.send(("progress", (images, total)))

    try:
        return "done", task.run(progress, should_stop)
    except Interrupted:
        return "stopped", None
    except StoreAwayError as error:
        return "store away", str(error)
    except UserError as error:
        return "bad input", str(error)
    except Exception as error:
        return "failed", (f"{type(error).__name__}: {error}", traceback.format_exc())
