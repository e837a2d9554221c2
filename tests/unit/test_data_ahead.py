"""Reading ahead changes when reads happen and nothing else: not the order, not what fails, not how much is held."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data import ahead
from hydramix_dist.data.ahead import read_ahead


@pytest.fixture(autouse=True)
def _four_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"requests": 4}))


@pytest.fixture
def _hundred_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "WINDOW_BYTES", 100)


class Reads:
    """Reads that count how many and how many bytes are begun and not yet handed on."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.begun, self.handed_on = sizes, 0, 0
        self.most, self.most_bytes, self.running, self.most_running = 0, 0, 0, 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, Callable[[], int]]]:
        for number, size in enumerate(self.sizes):
            yield size, lambda number=number: self._read(number)  # type: ignore[misc]

    def _read(self, number: int) -> int:
        with self._lock:
            self.begun += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            held = self.sizes[self.handed_on : number + 1]
            self.most, self.most_bytes = max(self.most, len(held)), max(self.most_bytes, sum(held))
        time.sleep(0.0002 * (number % 5))  # so that they end in another order
        with self._lock:
            self.running -= 1
        return number

    def take(self) -> Iterator[int]:
        for number in read_ahead(self):
            self.handed_on = number + 1
            yield number


@pytest.mark.usefixtures("_hundred_bytes")
@given(st.lists(st.integers(0, 120), max_size=60))
def test_order_is_kept_and_what_is_held_is_bounded(sizes: list[int]) -> None:
    reads = Reads(sizes)
    assert list(reads.take()) == list(range(len(sizes)))
    assert reads.most_running <= 4
    assert reads.most <= 17  # four times four, and the one that is being taken
    # One larger than the bound is read all the same, alone but for the one before it, which is being taken.
    assert reads.most_bytes <= max([100, *sizes]) + max([0, *sizes])


def test_as_many_run_at_once_as_requests_are_allowed() -> None:
    together = threading.Barrier(4)
    assert list(read_ahead((1, lambda: together.wait(10) >= 0) for _ in range(8))) == [True] * 8


def test_what_a_read_raises_comes_in_its_place_and_ends_it() -> None:
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        if number == 5:
            raise KeyError(number)
        time.sleep(0.001)
        return number

    taken = []
    with pytest.raises(KeyError, match="5"):
        for number in read_ahead((1, lambda number=number: read(number)) for number in range(1000)):  # type: ignore[misc]
            taken.append(number)
    assert taken == [0, 1, 2, 3, 4]
    assert len(begun) < 40


def test_one_who_stops_taking_leaves_no_thread_and_no_read_behind() -> None:
    reads = Reads([1] * 1000)
    with closing(reads.take()) as taken:  # type: ignore[type-var]
        assert next(taken) == 0
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    assert reads.begun <= 17
