"""Checkpoints written behind the training's back: nothing is lost, nothing waits longer than it must, nothing stays."""

import contextlib
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from hydramix_dist.checkpoint import EngineState, load, load_newest, save, weights_digest
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.training.saving import Saver


class GatedStore(Store):
    """A store whose writers wait at a gate: a disk as slow as the test wants it."""

    def __init__(self, url: Path) -> None:
        super().__init__(url)
        self.gate, self.waiting = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        self.waiting.set()
        assert self.gate.wait(30)
        with super().writer(path) as file:
            yield file


def states(value: float) -> dict[str, EngineState]:
    weights = {"w": torch.full((3, 4), value), "n": torch.tensor(int(value))}
    return {"net": EngineState(weights, {"exp_avg": {"w": torch.full((3, 4), -value)}}, step=int(value))}


def saved(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json"))


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A run's folder in which a file stands where the checkpoints' folder should."""
    (tmp_path / "checkpoints").write_text("in the way")
    return tmp_path


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_training_goes_on_while_the_disk_is_busy(tmp_path: Path) -> None:
    store = GatedStore(tmp_path)
    with Saver(store, keep=2) as saver:
        saver.save(10, states(10), {"seconds": 1.5}, None)
        assert store.waiting.wait(30) and saved(tmp_path) == [] and saver.finished() == []
        store.gate.set()
        saver.finish()
        assert saved(tmp_path) == [10]
        (one,) = saver.finished()
        assert one.images == 10 and 0 < one.seconds < 30 and one.at <= time.time()
        assert one.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
        assert saver.finished() == []


def test_files_are_those_of_a_save_in_the_foreground(tmp_path: Path) -> None:
    with Saver(Store(tmp_path / "behind"), keep=2) as saver:
        for images, score in ((10, 0.9), (20, 0.5), (30, 0.4), (40, 0.3)):
            saver.save(images, states(images), {"evaluations": [[images, {"a": 0.5}]]}, score)
            counters = {"evaluations": [[images, {"a": 0.5}]]}
            save(Store(tmp_path / "before"), images, states(images), counters, keep=2, score=score)
    files = [
        {path.relative_to(tmp_path / run): path.read_bytes() for path in (tmp_path / run).rglob("*") if path.is_file()}
        for run in ("behind", "before")
    ]
    assert files[0] == files[1]
    assert saved(tmp_path / "behind") == [10, 30, 40]


def test_one_save_at_a_time(tmp_path: Path) -> None:
    store = GatedStore(tmp_path)
    with Saver(store, keep=2) as saver:
        saver.save(10, states(10), {}, None)
        opening = threading.Timer(0.1, store.gate.set)
        opening.start()
        saver.save(20, states(20), {}, None)
        assert store.gate.is_set() and 10 in saved(tmp_path), "the second came back when the first was done"
        opening.join()
    assert saved(tmp_path) == [10, 20]


def test_counters_are_those_of_the_moment_of_the_save(tmp_path: Path) -> None:
    store = GatedStore(tmp_path)
    evaluations: list[Any] = [(10, {"a": 0.5})]
    with Saver(store, keep=2) as saver:
        saver.save(10, states(10), {"evaluations": evaluations}, None)
        evaluations[0][1]["a"] = 0.9
        evaluations.append((20, {"a": 0.7}))
        store.gate.set()
    assert load(store, 10).counters == {"evaluations": [[10, {"a": 0.5}]]}


def test_what_is_written_is_let_go(tmp_path: Path) -> None:
    with Saver(Store(tmp_path), keep=2) as saver:
        given = states(10)
        tensor = weakref.ref(given["net"].weights["w"])
        saver.save(10, given, {}, None)
        saver.finish()
        del given
        gc.collect()
        assert tensor() is None


@pytest.mark.parametrize("ask", [Saver.finish, lambda saver: saver.save(20, states(20), {}, None)])
def test_what_the_writer_met_is_raised_once_and_as_it_was(blocked: Path, ask: Callable[[Saver], None]) -> None:
    with Saver(Store(blocked), keep=2) as saver:
        saver.save(10, states(10), {}, None)
        with pytest.raises(UserError, match=r"cannot write .*checkpoints"):
            ask(saver)
        saver.finish()


def test_what_the_last_save_met_is_raised_on_leaving(blocked: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), Saver(Store(blocked), keep=2) as saver:
        saver.save(10, states(10), {}, None)


@pytest.mark.service
def test_a_full_disk_leaves_the_checkpoint_before(tiny_disk: Path) -> None:
    large = {"net": EngineState({"w": torch.ones(400, 1000)})}  # 1.6 MB, the disk has 1
    with Saver(Store(tiny_disk), keep=1) as saver:
        saver.save(10, states(10), {}, None)
        saver.save(20, large, {}, None)
        with pytest.raises(UserError, match="the disk is full"):
            saver.finish()
        newest = load_newest(Store(tiny_disk))
        assert newest is not None and (newest.images, newest.fallbacks) == (10, 0)
        saver.save(30, states(30), {}, None)
    assert sorted(path.name for path in (tiny_disk / "checkpoints").iterdir()) == [f"{30:012d}"]


def test_a_failing_training_waits_for_the_save_and_fails_by_its_own_error(tmp_path: Path) -> None:
    store = GatedStore(tmp_path)
    opening = threading.Timer(0.05, store.gate.set)
    with pytest.raises(ZeroDivisionError), Saver(store, keep=2) as saver:
        saver.save(10, states(10), {}, None)
        opening.start()
        raise ZeroDivisionError
    opening.join()
    assert weights_digest(load(store, 10).engines["net"].weights) == weights_digest(states(10)["net"].weights)


def test_of_two_errors_none_is_lost(blocked: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), Saver(Store(blocked), keep=2) as saver:
        saver.save(10, states(10), {}, None)
        raise ZeroDivisionError
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "cannot write" in record.message and "checkpoint" in record.message


def test_leaving_without_a_save_does_nothing(tmp_path: Path) -> None:
    with Saver(Store(tmp_path), keep=2) as saver:
        saver.finish()
        assert saver.finished() == []
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A finite loss may have gradients that are not; the checkpoint before them must stay the newest."""
    store, spoilt = Store(tmp_path), states(2.0)
    spoilt["net"].weights["w"][1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="net: 'w' is not finite after 8 images"), Saver(store, 2) as saver:
        saver.save(4, states(1.0), {}, None)
        saver.save(8, spoilt, {}, None)
    assert saved(tmp_path) == [4]
