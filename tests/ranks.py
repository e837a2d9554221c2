"""Several real processes for a test, brought together by gloo as the workers of a training are, without Ray.

All are forked from one process that has imported torch and DeepSpeed: a test pays for its own work, not for three
seconds of imports on every rank, and no process sees what an earlier test left behind in DeepSpeed's globals.
"""

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed as dist

T = TypeVar("T")

# The Muon optimizer is loaded with any engine of stages 1 to 3, and brings torch's compiler along.
PRELOAD = ["pytest", "torch", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"]
PRELOAD += ["hydramix_dist.training.deepspeed_engine"]
START = 120.0  # seconds for all ranks to come together, on a machine that has much else to do
GRACE = 5.0  # seconds for the other ranks to say what they saw of a failure


class RankError(AssertionError):
    """A rank raised, died or did not come to its end; the text has what each rank said."""


def run(world_size: int, function: Callable[..., T], *arguments: Any, seconds: float = 120.0) -> list[T]:
    """Return what `function(*arguments)` returns on each of `world_size` processes, in the order of ranks.

    Function and arguments are pickled: a function at the top of a module, plain values, tensors. Each process has one
    thread and a process group, and warnings are errors in it. Raises RankError after killing all of them where one
    raises, dies, or is not done `seconds` after they came together.
    """
    context = _context()
    job = pickle.dumps((function, arguments))
    with tempfile.TemporaryDirectory() as folder:
        ends: list[Connection] = []
        processes = []
        for rank in range(world_size):
            end, other = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, world_size, folder, seconds, other, job), daemon=True)
            process.start()
            other.close()  # so that the pipe ends with its process
            ends.append(end)
            processes.append(process)
        try:
            answers = _collect(ends, seconds)
            values = [pickle.loads(answer[1]) for answer in answers if answer is not None and answer[0]]
            for process in processes if len(values) == world_size else ():
                process.join(GRACE)
        finally:
            for process in processes:
                process.kill()
                process.join()
        if len(values) == world_size:
            return values
        raise RankError("\n".join(_account(rank, answer, Path(folder)) for rank, answer in enumerate(answers)))


def exit_code(function: Callable[..., object], *arguments: Any, seconds: float = 120.0) -> int:
    """Return how one process without a group ends that does `function(*arguments)`: minus the signal that kills it."""
    process = _context().Process(target=_apart, args=(pickle.dumps((function, arguments)),), daemon=True)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise RankError(f"not done after {seconds:.0f} s")
    return process.exitcode


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu"):
        forkserver.ensure_running()
    return context


def _apart(job: bytes) -> None:
    torch.set_num_threads(1)
    function, arguments = pickle.loads(job)
    function(*arguments)


def _collect(ends: list[Connection], seconds: float) -> list[tuple[bool, Any] | None]:
    """Return each rank's answer (whether it went well, and the value or the traceback); None: it gave none."""
    answers: list[tuple[bool, Any] | None] = [None] * len(ends)
    waiting, limit = dict(enumerate(ends)), time.monotonic() + START
    while waiting and time.monotonic() < limit:
        ready = connection.wait(list(waiting.values()), timeout=limit - time.monotonic())
        for rank in [rank for rank, end in waiting.items() if end in ready]:
            try:
                answer = ends[rank].recv()
            except EOFError:
                answer = False, "died"
            if answer is None:  # it has come
                limit = time.monotonic() + seconds
                continue
            del waiting[rank]
            answers[rank] = answer
            if not answer[0]:
                limit = min(limit, time.monotonic() + GRACE)
    return answers


def _account(rank: int, answer: tuple[bool, Any] | None, folder: Path) -> str:
    output = folder / f"rank{rank}"
    told = output.read_text(errors="replace")[-4000:] if output.exists() else ""
    said = "not done in time" if answer is None else "done" if answer[0] else answer[1]
    return f"---- rank {rank}: {said}\n{told}"


def _rank(rank: int, world_size: int, folder: str, seconds: float, answer: Connection, job: bytes) -> None:
    """Do a job as one rank and send its answer."""
    output = os.open(f"{folder}/rank{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    try:
        function, arguments = pickle.loads(job)
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
        answer.send(None)
        faulthandler.dump_traceback_later(seconds * 0.9, exit=False, file=2)  # where it hangs
        value = pickle.dumps(function(*arguments))  # not by the pipe's own pickling: it shares tensors with the dead
        answer.send((True, value))
        dist.barrier()  # the store's host must not leave before the others are done
        dist.destroy_process_group()
    except BaseException:
        answer.send((False, traceback.format_exc()))
        os._exit(1)  # nothing that waits for other ranks
