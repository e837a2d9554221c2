"""Checkpoints written while the training goes on: one background thread, at most one save in flight."""

import copy
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NamedTuple

import torch

from hydramix_dist import checkpoint
from hydramix_dist.checkpoint import EngineState
from hydramix_dist.store import Store

_log = logging.getLogger("hydramix")


class Saved(NamedTuple):
    """A checkpoint that is whole: of how many images, how long it took to write, its bytes, and when that was."""

    images: int
    seconds: float
    bytes: int
    at: float  # Unix time


class Saver:
    """Serialises, hashes, commits and prunes checkpoints of one training in a thread of its own.

    To be used as a context manager: leaving it waits for the writer, however the training ended. What the writer met
    is raised, as the exception that it was, by the next `save` or `finish`, at the latest on leaving. Only where the
    training leaves with an error of its own is it logged instead.
    """

    def __init__(self, store: Store, keep: int) -> None:
        """Take the run's folder and how many of the newest checkpoints stay; the first save starts the thread."""
        self._store, self._keep = store, keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None
        self._finished: list[Saved] = []

    def save(
        self, images: int, states: Mapping[str, EngineState], counters: Mapping[str, Any], score: float | None
    ) -> None:
        """Return once the save before is done; this one is then written while the training goes on.

        `states` are host copies that nobody changes any more; they are let go when they are written. Who gathers them
        calls `finish` first, so that never two whole states lie in memory.
        """
        self.finish()
        # The loop's lists of evaluations grow on while this is written.
        self._pending = self._writer.submit(self._commit, images, states, copy.deepcopy(dict(counters)), score)

    def finish(self) -> None:
        """Wait until nothing is being written; may be called at any time, and again."""
        if self._pending is None:
            return
        wait([self._pending])  # a Ctrl-C while waiting leaves the save pending, and what it meets is still heard of
        pending, self._pending = self._pending, None
        self._finished.append(pending.result())

    def finished(self) -> list[Saved]:
        """Return the saves that have become whole since the last call; `finish` raises what failed."""
        pending = self._pending
        if pending is not None and pending.done() and pending.exception() is None:
            self.finish()
        finished, self._finished = self._finished, []
        return finished

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.finish()
        except Exception as unwritten:
            if error is None:
                raise
            _log.error("besides, the last checkpoint was not written: %s", unwritten)
        finally:
            self._writer.shutdown()

    def _commit(
        self, images: int, states: Mapping[str, EngineState], counters: Mapping[str, Any], score: float | None
    ) -> Saved:
        began = time.monotonic()
        for engine, state in states.items():
            for name, tensor in state.weights.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise FloatingPointError(f"{engine}: '{name}' is not finite after {images} images; not saved")
        size = checkpoint.save(self._store, images, states, counters, keep=self._keep, score=score)
        return Saved(images, time.monotonic() - began, size, time.time())
