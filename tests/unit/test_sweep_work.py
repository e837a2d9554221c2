"""One training in its thread: its news, its pauses and its end, whatever that is."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_books import design_of, settings_of, tiny_images

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
from hydramix_dist.orchestration.sweep.design import Design, Trial
from hydramix_dist.orchestration.sweep.work import HangingError, News, Order, Running, Work, alone
from hydramix_dist.orchestration.tasks import Progress, ShouldStop, Task
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.telemetry import Sink

RESULT = {"seconds": 3.0, "cpu_seconds": 2.0, "images_seen": 48, "peak_memory_bytes": 1 << 20}
LONG = 30.0  # seconds; what takes so long has gone wrong


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Design:
    faces: Dataset = tiny_images(tmp_path_factory.mktemp("faces"))
    search = {"trials": 2, "space": {"classifier.dropout": {"choice": [0.0, 0.1]}}}
    classifier = {"network": "wrn-10-1", "dropout": 0.2, "side": 16, "batch": 4, "images": 16}
    return design_of(settings_of(search=search, classifier=classifier), faces=faces)


def trials_of(design: Design, kind: str) -> list[Trial]:
    (cell,) = (cell for cell in design.cells if cell.arm == "hydramix")
    if kind == "candidate":
        return design.candidate(design.groups["faces/baseline-n5"], 0, {"classifier.dropout": 0.0})
    if kind == "classifier":
        (cell,) = (cell for cell in design.cells if cell.arm == "baseline")
    return design.final(cell, {})


def order_of(
    design: Design, folder: Path, work: Work, kind: str = "generator", pauses: bool = False, silent: float = LONG
) -> Order:
    """Return an order to carry `work` out in a folder."""
    trial = next(trial for trial in trials_of(design, kind) if trial.kind == kind)
    task = replace(trial.task, folder_url=str(folder))
    return Order(trial.key, trial.kind, task, work, pauses, silent)


def until_end(running: Running) -> list[News]:
    """Return all news up to the end."""
    told = [running.news(LONG)]
    while told[-1].outcome == "running":
        told.append(running.news(LONG))
    return told


@contextmanager
def ended(running: Running) -> Iterator[Running]:
    """End what is under way, also when a test fails: its alarm would end this process."""
    try:
        yield running
    finally:
        running.stop()


def does(body: Callable[[Progress, ShouldStop, Callable[[int, float], None]], None]) -> Work:
    """Return a work of three questions: how far, whether to stop, and what a validation gave."""

    def work(task: Task, progress: Progress, should_stop: ShouldStop, sinks: Sequence[Sink]) -> dict[str, Any]:
        def validated(images: int, accuracy: float) -> None:
            for sink in sinks:
                sink.write({"test_accuracy_ratio": 0.0, "validation_accuracy_ratio": accuracy}, {}, images)

        body(progress, should_stop, validated)
        return dict(RESULT)

    return work


def fails_with(error: Exception) -> Work:
    def body(*_: Any) -> None:
        raise error

    return does(body)


def until_stopped(progress: Progress, should_stop: ShouldStop, _: Any) -> None:
    """Train until asked to stop."""
    images = 0
    while not should_stop():
        images += 1
        progress(images, 10**6)
        time.sleep(0.002)
    raise Interrupted("stopped")


# ---- ends


def test_the_end_comes_with_what_is_kept_of_the_result(design: Design, tmp_path: Path) -> None:
    def body(progress: Progress, *_: Any) -> None:
        progress(12, 48)
        progress(48, 48)

    (news,) = until_end(running := Running(order_of(design, tmp_path, does(body))))
    assert (news.outcome, news.images, news.total, news.error) == ("done", 48, 48, None)
    threads = trials_of(design, "generator")[0].task.runtime.threads
    assert news.summary == {
        "seconds": RESULT["cpu_seconds"] / threads,  # of what kept its cores busy, whatever ran beside it
        "wall_seconds": 3.0,
        "images_seen": 48,
        "peak_memory_bytes": 1 << 20,
        "reused": False,
    }
    again = running.news(LONG)
    assert (again.outcome, again.validated) == ("done", [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such layer"), "ValueError: no such layer"),
        (UserError("the folder is gone"), "the folder is gone"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(), "out of memory (MemoryError)"),
        (
            torch.OutOfMemoryError("tried to allocate 2 GiB"),
            "out of memory (OutOfMemoryError: tried to allocate 2 GiB)",
        ),
    ],
)
def test_a_failure_is_told_in_words(
    error: Exception, told: str, design: Design, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (news,) = until_end(Running(order_of(design, tmp_path, fails_with(error))))
    assert (news.outcome, news.error, news.summary) == ("failed", told, {})
    assert "generator hydramix, N=5, seed 0 failed\nTraceback" in caplog.text  # with all of it, for whoever looks


def test_a_store_that_is_away_is_no_fault_of_the_training(design: Design, tmp_path: Path) -> None:
    (news,) = until_end(Running(order_of(design, tmp_path, fails_with(StoreAwayError("no answer for 60 s")))))
    assert (news.outcome, news.error) == ("away", "no answer for 60 s")


def test_the_folder_is_free_after_the_end(design: Design, tmp_path: Path) -> None:
    for work in (does(lambda *_: None), fails_with(ValueError("broken"))):
        until_end(running := Running(order_of(design, tmp_path, work)))
        running.stop()
        with exclusively(Store(tmp_path)):
            pass


def test_busy_while_another_process_holds_the_folder(design: Design, tmp_path: Path) -> None:
    asked = []
    order = order_of(design, tmp_path, does(lambda *_: asked.append(1)))
    with exclusively(Store(tmp_path)):
        (news,) = until_end(Running(order))
    assert (news.outcome, news.error, asked) == ("busy", None, [])
    with (tmp_path / ".lock").open("w") as other:  # whoever holds it, by the lock alone
        fcntl.flock(other, fcntl.LOCK_EX)
        assert until_end(Running(order))[-1].outcome == "busy"
    assert until_end(Running(order))[-1].outcome == "done" and asked == [1]


def test_stop_ends_a_training_at_its_next_step(design: Design, tmp_path: Path) -> None:
    running = Running(order_of(design, tmp_path, does(until_stopped)))
    news = running.news(0.05)
    assert news.outcome == "running" and 0 < news.images < news.total == 10**6
    running.stop()
    assert running.news(LONG).outcome == "stopped"


def test_stop_waits_until_all_is_saved(design: Design, tmp_path: Path) -> None:
    saved = threading.Event()

    def body(progress: Progress, should_stop: ShouldStop, _: Any) -> None:
        while not should_stop():
            time.sleep(0.002)
        time.sleep(0.2)
        saved.set()
        raise Interrupted("stopped")

    running = Running(order_of(design, tmp_path, does(body)))
    running.stop()
    assert saved.is_set() and running.news(LONG).outcome == "stopped"


# ---- news


def test_news_come_after_the_time_given_or_at_once_at_the_end(design: Design, tmp_path: Path) -> None:
    go = threading.Event()
    with ended(Running(order_of(design, tmp_path, does(lambda *_: assert_set(go))))) as running:
        began = time.monotonic()
        assert running.news(0.1).outcome == "running" and 0.1 <= time.monotonic() - began < LONG
        threading.Timer(0.05, go.set).start()
        assert running.news(LONG).outcome == "done" and time.monotonic() - began < LONG / 2


def assert_set(event: threading.Event) -> None:
    assert event.wait(LONG)


def test_validations_are_told_once_with_the_next_news(design: Design, tmp_path: Path) -> None:
    go = threading.Event()

    def body(progress: Progress, should_stop: ShouldStop, validated: Callable[[int, float], None]) -> None:
        validated(8, 0.25)
        validated(16, 0.5)
        assert_set(go)
        validated(24, 0.75)

    with ended(Running(order_of(design, tmp_path, does(body)))) as running:
        told: list[tuple[int, float]] = []
        while len(told) < 2:
            told += running.news(0.05).validated
        assert told == [(8, 0.25), (16, 0.5)] and running.news(0.01).validated == []
        go.set()
        for news in until_end(running):
            told += news.validated
        assert told[2:] == [(24, 0.75)]


# ---- pauses


def validates(times: int, passed: list[int]) -> Work:
    """Return a work that validates and, where it may go on, notes so."""

    def body(progress: Progress, should_stop: ShouldStop, validated: Callable[[int, float], None]) -> None:
        for number in range(1, times + 1):
            progress(number, times)
            validated(number, number / 10)
            if should_stop():
                raise Interrupted("stopped")
            passed.append(number)

    return does(body)


def test_it_pauses_at_each_validation_until_it_is_asked_again(design: Design, tmp_path: Path) -> None:
    passed: list[int] = []
    with ended(Running(order_of(design, tmp_path, validates(3, passed), pauses=True))) as running:
        for number in (1, 2, 3):
            news = running.news(LONG)
            assert (news.outcome, news.validated, news.images) == ("running", [(number, number / 10)], number)
            time.sleep(0.05)
            assert passed == list(range(1, number))
        assert running.news(LONG).outcome == "done" and passed == [1, 2, 3]


def test_a_validation_that_nobody_waited_for_is_judged_before_it_goes_on(design: Design, tmp_path: Path) -> None:
    passed: list[int] = []
    with ended(Running(order_of(design, tmp_path, validates(2, passed), pauses=True))) as running:
        time.sleep(0.1)  # the driver is busy elsewhere
        assert running.news(LONG).validated == [(1, 0.1)]
        time.sleep(0.1)
        assert passed == []
        assert running.news(LONG).validated == [(2, 0.2)] and passed == [1]


def test_without_pauses_it_goes_on(design: Design, tmp_path: Path) -> None:
    passed: list[int] = []
    running = Running(order_of(design, tmp_path, validates(3, passed)))
    told = [pair for news in until_end(running) for pair in news.validated]
    assert passed == [1, 2, 3] and told == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_stop_ends_a_paused_one(design: Design, tmp_path: Path) -> None:
    passed: list[int] = []
    running = Running(order_of(design, tmp_path, validates(3, passed), pauses=True))
    assert running.news(LONG).validated == [(1, 0.1)]
    began = time.monotonic()
    running.stop()
    assert running.news(LONG).outcome == "stopped" and passed == [] and time.monotonic() - began < LONG / 2


def test_asked_to_stop_it_pauses_no_more(design: Design, tmp_path: Path) -> None:
    """A training that is about to validate when it is asked to stop has nobody left to wait for."""
    stopping = threading.Event()

    def body(progress: Progress, should_stop: ShouldStop, validated: Callable[[int, float], None]) -> None:
        while not should_stop():
            time.sleep(0.002)
        validated(1, 0.5)  # as a training does that has a checkpoint due at the step it stops after
        stopping.set()
        raise Interrupted("stopped")

    running = Running(order_of(design, tmp_path, does(body), pauses=True, silent=2.0))
    running.stop()
    assert stopping.is_set() and running.news(LONG).outcome == "stopped"


# ---- those that hang


def test_one_without_progress_is_taken_for_hanging(design: Design, tmp_path: Path) -> None:
    go = threading.Event()
    with ended(Running(order_of(design, tmp_path, does(lambda *_: assert_set(go)), silent=1.0))) as running:
        assert running.news(0.01).outcome == "running"
        with pytest.raises(HangingError, match=r"no progress for 0\.0 minutes; taken for hanging, and ended"):
            running.news(1.2)
        began = time.monotonic()
        running.stop()  # and is not waited for
        assert time.monotonic() - began < LONG / 2
        go.set()
        assert running.news(LONG).outcome == "done"


def test_slow_ones_and_paused_ones_do_not_hang(design: Design, tmp_path: Path) -> None:
    def slow(progress: Progress, *_: Any) -> None:
        for number in range(15):
            progress(number, 15)
            time.sleep(0.1)

    running = Running(order_of(design, tmp_path / "slow", does(slow), silent=1.0))
    while running.news(0.15).outcome == "running":
        pass
    assert running.news(LONG).outcome == "done"

    passed: list[int] = []
    with ended(Running(order_of(design, tmp_path, validates(2, passed), pauses=True, silent=0.3))) as paused:
        assert paused.news(LONG).validated == [(1, 0.1)]
        time.sleep(0.4)  # the driver takes its time
        assert paused.news(LONG).validated == [(2, 0.2)]


# ---- real trainings


def test_a_candidate_tells_its_validations_and_keeps_the_last(design: Design, tmp_path: Path) -> None:
    order = order_of(design, tmp_path, alone, "candidate", pauses=True)
    *news, last = until_end(Running(order))
    told = [pair for each in news for pair in each.validated]
    assert last.outcome == "done" and [images for images, _ in told] == [4, 8, 12, 16]
    assert last.summary["value"] == told[-1][1] and not last.summary["reused"] and last.summary["images_seen"] == 16
    assert "accuracy" not in last.summary and last.summary["seconds"] > 0
    (again,) = until_end(Running(order))
    assert again.summary == last.summary | {"reused": True}  # not trained again


def test_a_stopped_candidate_goes_on_where_it_was(design: Design, tmp_path: Path) -> None:
    order = order_of(design, tmp_path, alone, "candidate", pauses=True)
    running = Running(order)
    first = running.news(LONG).validated
    running.stop()
    stopped = running.news(LONG)  # at its next step, at which a validation is due
    assert stopped.outcome == "stopped"
    *news, last = until_end(Running(order))
    told = [*first, *stopped.validated, *(pair for each in news for pair in each.validated)]
    assert last.outcome == "done" and [images for images, _ in told] == [4, 8, 12, 16]


def test_a_classifier_is_scored_on_the_test_images(design: Design, tmp_path: Path) -> None:
    order = order_of(design, tmp_path, alone, "classifier")
    last = until_end(Running(order))[-1]
    assert last.outcome == "done" and last.validated == []
    assert {"accuracy", "balanced_accuracy", "test_images", "generator_key"} <= last.summary.keys()
    assert (last.summary["test_images"], last.summary["generator_key"]) == (6, None)
    assert last.summary["accuracy"] in [pytest.approx(right / 6) for right in range(7)]
    assert "value" not in last.summary and "predictions" not in last.summary
