"""How long one stretch of each step takes on the device that carries it out."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import torch

MOST = 1000  # times that are kept where nobody asks for them


class Stopwatch:
    """Times a stretch of each step; on a GPU by its own clock, for which nothing waits."""

    def __init__(self, device: torch.device) -> None:
        """Take the device that the stretch is computed on."""
        self._on_gpu = device.type == "cuda"
        self._seconds: deque[float] = deque(maxlen=MOST)
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=MOST)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Time what is done in the block."""
        if not self._on_gpu:
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def mean(self) -> float | None:
        """Return the mean in seconds of what was timed since the last call, None where nothing was."""
        while self._events and self._events[0][1].query():
            begin, end = self._events.popleft()
            self._seconds.append(begin.elapsed_time(end) / 1000)
        times = [self._seconds.popleft() for _ in range(len(self._seconds))]
        return sum(times) / len(times) if times else None
