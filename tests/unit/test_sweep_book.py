"""What a sweep begins next: in order, each once, again after a failure, and not beyond its limits."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sweep_books import Driver, design_of, of_kind, result_of, settings_of, states, tiny_images, value_of

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.orchestration.sweep import book as book_module
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design
from hydramix_dist.orchestration.sweep.ledger import Event


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_images(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_images(tmp_path_factory.mktemp("leaves"), seed=1)


@pytest.fixture(scope="module")
def design(faces: Dataset) -> Design:
    """Three arms, two of them with the same generator, on two subsets."""
    return design_of(settings_of(seeds=[0, 1]), faces=faces)


def opened(design: Design, events: list[Event] | None = None) -> tuple[Book, list[Event]]:
    """Return a book with what it has recorded, `events` first."""
    events = [] if events is None else events
    book = Book(design, events.append)
    book.replay(list(events))
    return book, events


def generator_of(design: Design, seed: int, shots: int = 5, arm: str = "hydramix") -> str:
    cell = next(cell for cell in design.cells if (cell.arm, cell.shots, cell.seed) == (arm, shots, seed))
    return str(design.final(cell, {})[0].key)


# ---- the order


def test_seed_by_seed_each_generator_once_and_before_its_classifiers(design: Design) -> None:
    book, events = opened(design)
    assert Driver(book).run() == [
        key
        for seed in (0, 1)
        for key in (
            f"classifiers/faces/baseline-n5-seed{seed}",
            generator_of(design, seed),
            f"classifiers/faces/hydramix-n5-seed{seed}",
            f"classifiers/faces/both-n5-seed{seed}",
        )
    ]
    assert book.total == len(book.entries) == 8 and set(states(book).values()) == {"done"}
    assert [event["event"] for event in events] == ["begun", "done"] * 8


def test_data_sets_and_shots_take_turns(faces: Dataset, leaves: Dataset) -> None:
    settings = settings_of(seeds=[3, 1], shots=[5, 1], arms={"a": {}, "b": {"augmentation": "trivial"}})
    book, _ = opened(design_of(settings, faces=faces, leaves=leaves))
    assert Driver(book).run() == [
        f"classifiers/{data}/{arm}-n{shots}-seed{seed}"
        for seed in (3, 1)
        for data in ("faces", "leaves")
        for shots in (5, 1)
        for arm in ("a", "b")
    ]


def test_arms_of_higher_priority_come_first(faces: Dataset) -> None:
    settings = settings_of(seeds=[0, 1], priorities={"both": 2, "baseline": -1}, axes={"classifier.batch": [4, 8]})
    book, _ = opened(design_of(settings, faces=faces))
    arms = [key.split("/")[-1].split("-")[0] for key in Driver(book).run() if key.startswith("classifiers/")]
    assert arms == ["both"] * 4 + ["hydramix"] * 4 + ["baseline"] * 4


def test_while_a_generator_trains_others_are_begun(design: Design) -> None:
    book, _ = opened(design)
    driver = Driver(book, at_a_time=4)
    assert driver.fill() == [
        "classifiers/faces/baseline-n5-seed0",
        generator_of(design, 0),
        "classifiers/faces/baseline-n5-seed1",
        generator_of(design, 1),
    ]
    assert book.next() is None and not book.over
    driver.pick = lambda under_way: min(1, under_way - 1)
    driver.end_one()
    assert driver.fill()[-1] == "classifiers/faces/hydramix-n5-seed0"
    assert max(Counter(driver.run()).values()) == 1 and len(driver.begun) == 8


def test_arms_that_differ_in_the_classifier_alone_share_a_generator(faces: Dataset) -> None:
    settings = settings_of(axes={"classifier.batch": [4, 8], "generator.mix.count": [2, 3]})
    book, _ = opened(design_of(settings, faces=faces))
    begun = Driver(book, at_a_time=3).run()
    assert Counter(key.split("/")[0] for key in begun) == {"generators": 2, "classifiers": 2 + 4 + 4}


# ---- failures


def test_a_training_that_fails_is_tried_again(design: Design) -> None:
    book, events = opened(design)
    key = "classifiers/faces/baseline-n5-seed0"
    begun = Driver(book, failures={key: 2}).run()
    assert begun[:3] == [key] * 3 and len(begun) == 10 and set(states(book).values()) == {"done"}
    failed = list(of_kind(events, "failed"))
    assert [(event["key"], event["error"], event["final"]) for event in failed] == [(key, f"{key} broke", False)] * 2
    assert {"kind", "data", "arm", "shots", "seed", "name"} < failed[0].keys()


def test_after_its_attempts_a_training_has_failed_for_good(faces: Dataset) -> None:
    design = design_of(settings_of(limits={"attempts": 2}), faces=faces)
    book, events = opened(design)
    key = "classifiers/faces/baseline-n5-seed0"
    begun = Driver(book, failures={key: 9}).run()
    assert begun.count(key) == 2 and len(begun) == 5
    assert states(book)[key] == "failed" and Counter(states(book).values()) == {"failed": 1, "done": 3}
    assert [event["final"] for event in of_kind(events, "failed")] == [False, True]
    again, _ = opened(design, events)
    assert again.over and again.next() is None and states(again) == states(book)
    assert again.entries[key].error == f"{key} broke"


def test_with_a_generator_fails_what_needs_it(design: Design) -> None:
    book, events = opened(design)
    generator = generator_of(design, 0)
    begun = Driver(book, at_a_time=2, failures={generator: 3}).run()
    assert begun.count(generator) == 3
    dependents = ["classifiers/faces/hydramix-n5-seed0", "classifiers/faces/both-n5-seed0"]
    assert not set(dependents) & set(begun)
    for key in dependents:
        assert book.entries[key].state == "failed"
        assert book.entries[key].error == f"not begun, for the training it needs failed: {generator} broke"
    assert {key for key, state in states(book).items() if state == "failed"} == {generator, *dependents}
    # Killed before it could note what followed: the next driver does.
    final = next(number for number, event in enumerate(events) if event.get("final"))
    resumed, _ = opened(design, events[: final + 1])
    assert {key for key, state in states(resumed).items() if state == "failed"} == {generator, *dependents}


def test_only_failed_ones_get_another_chance(design: Design) -> None:
    generator, plain = generator_of(design, 0), "classifiers/faces/baseline-n5-seed1"
    book, events = opened(design)
    driver = Driver(book, failures={generator: 3, plain: 3})
    while not {generator, plain} <= {key for key, state in states(book).items() if state == "failed"}:
        driver.fill()
        driver.end_one()
    pending = {key for key, state in states(book).items() if state == "pending"}
    assert pending == {generator_of(design, 1), *(f"classifiers/faces/{arm}-n5-seed1" for arm in ("hydramix", "both"))}

    again, events = opened(design, events)
    again.only_failed()
    failed = {generator, plain, "classifiers/faces/hydramix-n5-seed0", "classifiers/faces/both-n5-seed0"}
    assert set(events[-1]["keys"]) == failed and events[-1]["event"] == "again"
    second = Driver(again, at_a_time=2, failures={plain: 1})
    begun = second.run()
    assert set(begun) == failed and len(begun) == 5  # the counting of attempts begins anew
    assert {key for key, state in states(again).items() if state == "pending"} == pending
    assert set(Driver(opened(design, events)[0]).run()) == pending


def test_only_failed_where_nothing_has_failed(design: Design) -> None:
    book, events = opened(design)
    book.only_failed()
    assert book.over and book.next() is None and events == []


# ---- trainings of other processes, and those that were stopped


def test_a_busy_one_is_asked_for_again(design: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "BUSY_SECONDS", 0.05)
    book, events = opened(design)
    first, second = book.next(), book.next()
    assert first is not None and second is not None and second.kind == "generator"
    before = time.monotonic()
    book.busy(second.key)
    book.done(first.key, result_of(first))
    driver = Driver(book)
    assert driver.fill() == ["classifiers/faces/baseline-n5-seed1"]  # meanwhile others are begun
    assert not book.over
    time.sleep(max(0.0, before + 0.06 - time.monotonic()))
    driver.at_a_time = 2
    assert driver.fill()[1] == second.key
    driver.run()
    assert set(states(book).values()) == {"done"} and not list(of_kind(events, "failed"))


def test_only_a_busy_one_is_left(faces: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "BUSY_SECONDS", 0.05)
    book, _ = opened(design_of(settings_of(arms={"baseline": {}}), faces=faces))
    trial = book.next()
    assert trial is not None
    book.busy(trial.key)
    assert book.next() is None and not book.over and book.counts["pending"] == 1
    time.sleep(0.06)
    assert book.next() == trial and book.next() is None


def test_one_that_was_stopped_is_next(design: Design) -> None:
    book, events = opened(design)
    trial = book.next()
    assert trial is not None
    book.begun(trial.key)
    book.put_back(trial.key)
    assert states(book)[trial.key] == "pending" and book.next() == trial
    killed, _ = opened(design, events)  # without a word of its end
    assert states(killed)[trial.key] == "pending" and killed.next() == trial


# ---- limits


def test_no_more_trainings_than_the_limit(faces: Dataset) -> None:
    for at_a_time in (1, 3):
        design = design_of(settings_of(seeds=[0, 1], limits={"trials": 4}), faces=faces)
        book, events = opened(design)
        begun = Driver(book, at_a_time=at_a_time, failures={"classifiers/faces/baseline-n5-seed0": 1}).run()
        assert book.closed and len(set(begun)) == 4 and len(begun) == 5  # what failed does not count
        assert Counter(states(book).values()) == {"done": 4, "pending": 4}
        assert opened(design, events)[0].over
        larger = design_of(settings_of(seeds=[0, 1], limits={"trials": 6}), faces=faces)
        resumed = opened(larger, events)[0]
        assert not resumed.over and len(Driver(resumed).run()) == 2


def test_no_training_is_begun_after_the_gpu_hours(faces: Dataset) -> None:
    def spend(book: Book, hours: float) -> None:
        trial = book.next()
        assert trial is not None
        book.begun(trial.key)
        book.done(trial.key, result_of(trial) | {"gpu_seconds": hours * 3600})

    design = design_of(settings_of(limits={"gpu_hours": 1.0}), faces=faces)
    book, events = opened(design)
    spend(book, 0.625)
    assert not book.over
    spend(book, 0.375)
    assert book.next() is None and opened(design, events)[0].closed
    assert opened(design, events)[0].over  # counted over all sessions
    assert not opened(design_of(settings_of(limits={"gpu_hours": 1.5}), faces=faces), events)[0].over


# ---- what is kept


def test_results_are_kept_with_the_training(design: Design) -> None:
    book, events = opened(design)
    Driver(book).run()
    for replayed in (book, opened(design, [{"time": 1.5, **event} for event in events])[0]):
        for key, entry in replayed.entries.items():
            expected: dict[str, Any] = result_of(entry.trial)
            assert dict(entry.result) == expected
            if entry.trial.kind == "classifier":
                assert entry.result["accuracy"] == value_of(key)


def test_events_of_trainings_that_are_no_part_of_it_are_passed_over(design: Design, tmp_path: Path) -> None:
    stranger = {"event": "done", "key": "classifiers/faces/gone-n5-seed0", "seconds": 1.0}
    book, _ = opened(design, [stranger, {"event": "session"}, {"event": "asked", "group": "gone", "values": {}}])
    assert set(states(book).values()) == {"pending"} and len(book.entries) == 8
