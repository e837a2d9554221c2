"""Searches in a sweep: the same budget for every arm, the best on validation chosen, and no kill that changes it."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from sweep_books import SPACE, Driver, design_of, of_kind, settings_of, states, tiny_images, value_of

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.sweep import book as book_module
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design, Trial
from hydramix_dist.orchestration.sweep.ledger import LEDGER_FILE, Event, Ledger, read_events
from hydramix_dist.orchestration.sweep.search import suggest
from hydramix_dist.orchestration.tasks import ClassifierTask
from hydramix_dist.store import Store

LR = "classifier.optimizer.lr"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_images(tmp_path_factory.mktemp("faces"))


def search(**changes: Any) -> dict[str, Any]:
    return {"at": 5, "trials": 3, "space": SPACE} | changes


@pytest.fixture(scope="module")
def design(faces: Dataset) -> Design:
    """Three arms at N = 1 and 5, settings chosen at 5 among three candidates on two subsets each."""
    return design_of(settings_of(shots=[1, 5], search=search(seeds=[4, 7])), faces=faces)


def opened(design: Design, events: list[Event] | None = None) -> tuple[Book, list[Event]]:
    """Return a book with what it has recorded, `events` first."""
    events = [] if events is None else events
    book = Book(design, events.append)
    book.replay(list(events))
    return book, events


def candidate(arm: str, index: int, seed: int = 4) -> str:
    return f"candidates/faces/{arm}-n5-c{index:03d}-seed{seed}"


def scored(scores: dict[tuple[str, int, int], float]) -> Callable[[Trial], float | None]:
    """Return the value of each candidate by arm, index and seed; 0.5 where none is given."""
    return lambda trial: scores.get((str(trial.arm), trial.index or 0, trial.seed), 0.5)


def chosen(events: list[Event]) -> dict[str, tuple[int, float, int]]:
    """Return index, score and number of finished candidates by group."""
    return {e["group"]: (e["index"], e["score"], e["candidates"]) for e in of_kind(events, "chosen")}


# ---- budget and choice


def test_every_arm_is_tried_as_often_with_the_same_values(design: Design) -> None:
    book, events = opened(design)
    begun = Driver(book, at_a_time=3).run()
    asked = {name: [event for event in of_kind(events, "asked") if event["group"] == name] for name in design.groups}
    assert list(asked) == [f"faces/{arm}-n5" for arm in ("baseline", "hydramix", "both")]
    for of_group in asked.values():
        assert [event["index"] for event in of_group] == [0, 1, 2]
        assert [event["values"] for event in of_group] == [e["values"] for e in asked["faces/baseline-n5"]]
    tried = Counter(key.rsplit("/", 1)[-1].split("-")[0] for key in begun if key.startswith("candidates/"))
    assert tried == {"baseline": 6, "hydramix": 6, "both": 6} and max(Counter(begun).values()) == 1
    # Generators: of two subsets to search on and two to report, each once for both arms.
    assert sum(key.startswith("generators/") for key in begun) == 4
    assert book.total == len(book.entries) == len(begun) == 18 + 4 + 6


def test_total_counts_what_is_still_to_be_drawn(design: Design) -> None:
    book, _ = opened(design)
    assert book.entries == {} and book.total == 18 + 6  # generators are known with what needs them
    book.next()
    assert len(book.entries) == 2 and book.total == 18 + 6


def test_candidates_are_scored_without_test_images(design: Design) -> None:
    book, _ = opened(design)
    Driver(book).run()
    kinds = Counter(entry.trial.kind for entry in book.entries.values())
    assert kinds == {"candidate": 18, "classifier": 6, "generator": 4}
    for entry in book.entries.values():
        task = entry.trial.task
        if not isinstance(task, ClassifierTask):
            continue
        searching = entry.trial.kind == "candidate"
        assert (bool(task.test_rows), bool(task.validation_rows)) == (not searching, searching)
        assert task.seed in ((4, 7) if searching else (0,))


def test_the_best_mean_over_the_seeds_is_chosen_for_every_shots(design: Design) -> None:
    book, events = opened(design)
    means = {("baseline", 0, 4): 0.9, ("baseline", 0, 7): 0.2, ("baseline", 1, 4): 0.6, ("baseline", 1, 7): 0.7}
    Driver(book, values=scored(means | {("both", 2, 4): 0.75, ("hydramix", 0, 7): 0.4})).run()
    assert chosen(events) == {
        "faces/baseline-n5": (1, pytest.approx(0.65), 3),
        "faces/hydramix-n5": (1, 0.5, 3),
        "faces/both-n5": (2, pytest.approx(0.625), 3),
    }
    asked = {(event["group"], event["index"]): event["values"] for event in of_kind(events, "asked")}
    for event in of_kind(events, "chosen"):
        assert event["values"] == asked[event["group"], event["index"]]
    for shots in (1, 5):
        task = book.entries[f"classifiers/faces/both-n{shots}-seed0"].trial.task
        assert task.settings.optimizer.lr == asked["faces/both-n5", 2][LR]


def test_of_equal_ones_the_first_is_chosen(design: Design) -> None:
    for at_a_time in (1, 5):
        book, events = opened(design)
        last_first = Driver(book, at_a_time=at_a_time, values=scored({}), pick=lambda under_way: under_way - 1)
        last_first.run()
        assert set(chosen(events).values()) == {(0, 0.5, 3)}


def test_finals_are_begun_after_the_choice_and_no_earlier(design: Design) -> None:
    book, events = opened(design)
    Driver(book, at_a_time=2).run()
    for name, group in design.groups.items():
        choice = next(number for number, e in enumerate(events) if e["event"] == "chosen" and e["group"] == name)
        finals = [n for n, e in enumerate(events) if e["event"] == "begun" and e["key"].startswith("classifiers/")]
        own = [n for n in finals if events[n]["arm"] == group.arm]
        assert len(own) == 2 and min(own) > choice
        ended = [n for n, e in enumerate(events) if e["event"] == "done" and f"/{group.arm}-n5-c" in e["key"]]
        assert len(ended) == 6 and max(ended) < choice


def test_arms_without_a_searched_setting_are_trained_at_once(faces: Dataset) -> None:
    settings = settings_of(search=search(space={"generator.mix.count": {"choice": [2, 3]}}))
    design = design_of(settings, faces=faces)
    book, events = opened(design)
    begun = Driver(book).run()
    assert begun[0] == "classifiers/faces/baseline-n5-seed0"
    assert (
        list(design.groups) == ["faces/hydramix-n5", "faces/both-n5"] and chosen(events).keys() == design.groups.keys()
    )


def test_at_each_shots_by_itself(faces: Dataset) -> None:
    settings = settings_of(shots=[5, 6], arms={"baseline": {}}, search=search(at=None))
    book, events = opened(design_of(settings, faces=faces))
    Driver(book, values=lambda trial: float(trial.shots == 5) if trial.index == 2 else 0.5).run()
    assert chosen(events) == {"faces/baseline-n5": (2, 1.0, 3), "faces/baseline-n6": (0, 0.5, 3)}
    rates = {shots: book.entries[f"classifiers/faces/baseline-n{shots}-seed0"].trial.task.settings for shots in (5, 6)}
    assert rates[5] != rates[6]


def test_too_few_images_to_choose_by_are_refused_before_anything_begins(tmp_path: Path) -> None:
    images = tiny.image_folder(tmp_path / "images", {"a": 7, "b": 4}, test=2)
    import_dataset(images, str(tmp_path / "data"), segments=None, workers=1)
    with pytest.raises(UserError, match="at least 5 images of each class"):
        design_of(settings_of(search=search()), few=Dataset.open(str(tmp_path / "data")))


# ---- candidates that come to no end


def test_one_that_was_stopped_early_is_not_chosen(faces: Dataset) -> None:
    design = design_of(settings_of(arms={"baseline": {}}, search=search(method="asha")), faces=faces)
    book, events = opened(design)
    driver = Driver(book, at_a_time=3)
    driver.fill()
    best = driver.under_way.pop(1)
    book.validated(best.key, 24, 0.99)
    book.early(best.key, 24, 0.99)
    driver.run()
    index, _, finished = chosen(events)["faces/baseline-n5"]
    assert index == max((0, 2), key=lambda n: value_of(candidate("baseline", n, seed=0))) and finished == 2
    assert states(book)[best.key] == "early" and best.key not in driver.begun[3:]
    resumed, _ = opened(design, events)
    assert resumed.over and resumed.validated_before == [(best.key, 24, 0.99)]


def test_one_of_which_a_part_failed_is_not_chosen(design: Design) -> None:
    book, events = opened(design)
    scores = {("baseline", 1, 4): 1.0, ("baseline", 1, 7): 1.0}
    Driver(book, values=scored(scores), failures={candidate("baseline", 1, 7): 3}).run()
    assert chosen(events)["faces/baseline-n5"] == (0, 0.5, 2)


def test_where_all_fail_nothing_is_chosen_until_they_get_another_chance(design: Design) -> None:
    book, events = opened(design)
    broken = {candidate("both", index): 3 for index in range(3)}
    begun = Driver(book, at_a_time=2, failures=broken).run()
    (event,) = of_kind(events, "unchosen")
    assert event["group"] == "faces/both-n5" and event["error"] == (
        f"no setting could be chosen: none of 3 candidates came to its end ({candidate('both', 2)} broke)"
    )
    assert not [key for key in begun if key.startswith("classifiers/faces/both-")]
    assert opened(design, events)[0].over

    again, events = opened(design, events)
    again.only_failed()
    finals = [f"classifiers/faces/both-n{shots}-seed0" for shots in (1, 5)]
    assert sorted(Driver(again).run()) == sorted([*broken, *finals])
    assert "faces/both-n5" in chosen(events) and len(chosen(events)) == 3
    assert opened(design, events)[0].over


# ---- what is asked when


def test_searches_go_on_side_by_side(design: Design) -> None:
    book, events = opened(design)
    driver = Driver(book, at_a_time=1)
    while len(list(of_kind(events, "asked"))) < 9:
        counts = Counter(event["group"] for event in of_kind(events, "asked"))
        assert max(counts.values(), default=0) - min(counts[name] for name in design.groups) <= 1
        driver.fill()
        driver.end_one()


def test_searches_of_arms_with_a_higher_priority_come_first(faces: Dataset) -> None:
    book, events = opened(design_of(settings_of(search=search(), priorities={"both": 2, "baseline": -1}), faces=faces))
    Driver(book).run()
    asked = [event["group"] for event in of_kind(events, "asked")]
    assert asked == [f"faces/{arm}-n5" for arm in ("both", "hydramix", "baseline") for _ in range(3)]


def test_a_limit_counts_candidates_too(faces: Dataset) -> None:
    settings = settings_of(arms={"baseline": {}}, search=search(), limits={"trials": 2})
    book, events = opened(design_of(settings, faces=faces))
    assert len(Driver(book, at_a_time=4).run()) == 2 and not chosen(events)
    settings = settings_of(arms={"baseline": {}}, search=search())
    resumed, events = opened(design_of(settings, faces=faces), events)
    assert len(Driver(resumed, at_a_time=4).run()) == 2 and len(chosen(events)) == 1


def test_optuna_is_told_the_scores_of_its_own_group(faces: Dataset) -> None:
    design = design_of(settings_of(search=search(method="optuna", trials=4)), faces=faces)
    book, events = opened(design)
    Driver(book).run()
    for name, group in design.groups.items():
        tried: list[Any] = []
        for event in (e for e in of_kind(events, "asked") if e["group"] == name):
            assert event["values"] == suggest(design.settings.search, (LR,), name, tried)  # type: ignore[arg-type]
            tried.append((event["values"], value_of(candidate(group.arm, len(tried), seed=0))))
        assert len(tried) == 4


def test_optuna_is_not_asked_while_what_it_asked_for_waits(faces: Dataset) -> None:
    """A candidate that waits for its generator has no score yet: to ask for more of its group would be blind."""
    settings = settings_of(arms={"hydramix": {"generator": "hydramix"}}, search=search(method="optuna", trials=9))
    book, events = opened(design_of(settings, faces=faces))
    driver = Driver(book, at_a_time=2)
    assert len(driver.fill()) == 1 and len(list(of_kind(events, "asked"))) == 1
    driver.end_one()
    assert len(driver.fill()) == 2 and len(list(of_kind(events, "asked"))) == 2
    assert Counter(key.split("/")[0] for key in driver.run()) == {"generators": 2, "candidates": 9, "classifiers": 1}


# ---- kills


class KilledError(Exception):
    """What ends a driver in the middle of its work."""


@dataclass
class Kills:
    """Writes a sweep's record, and is killed after some of its events; then the end of the last line may be torn."""

    path: Path
    after: Iterator[tuple[int, int]]  # (events until the next kill, bytes of the last line that are lost)
    left: int = 0
    torn: int = 0
    count: int = -1  # of kills so far
    written: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arm()

    def arm(self) -> None:
        """Set the next kill."""
        self.left, self.torn = next(self.after, (10**9, 0))
        self.count += 1

    def record(self, ledger: Ledger, event: Event) -> None:
        """Append an event, and perhaps be killed before it is applied."""
        ledger.write(event)
        self.written.append(event)
        self.left -= 1
        if self.left <= 0:
            *lines, last = self.path.read_bytes().splitlines(keepends=True)
            self.path.write_bytes(b"".join(lines) + last[: max(0, len(last) - self.torn)])
            self.arm()
            raise KilledError


def outcome(events: list[Event]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return values of what is done, what failed for good, and what was chosen, from a record."""
    done = {e["key"]: e.get("value", e.get("accuracy")) for e in of_kind(events, "done")}
    failed = {e["key"]: e["error"] for e in of_kind(events, "failed") if e["final"]}
    names = ("index", "values", "score", "candidates", "error")
    return done, failed, {e["group"]: [e.get(n) for n in names] for e in of_kind(events, "chosen", "unchosen")}


def undisturbed(design: Design, failures: dict[str, int]) -> tuple[Any, list[str]]:
    book, events = opened(design)
    begun = Driver(book, failures=failures).run()
    return outcome(events), begun


@dataclass
class Remembering(Design):
    """A design that makes each training once, however many drivers ask for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.final = cache_of(super().final)  # type: ignore[method-assign]
        self.candidate = cache_of(super().candidate)  # type: ignore[method-assign]

    def __repr__(self) -> str:  # Hypothesis shows what a test is given
        return "the design"


def cache_of(make: Callable[..., list[Trial]]) -> Callable[..., list[Trial]]:
    known: dict[str, list[Trial]] = {}

    def remembered(*arguments: Any) -> list[Trial]:
        if repr(arguments) not in known:
            known[repr(arguments)] = make(*arguments)
        return known[repr(arguments)]

    return remembered


@pytest.fixture(scope="module")
def made(design: Design) -> Remembering:
    return Remembering(design.settings, design.whole, design.datasets, design.out, design.shared)


@given(data=st.data())
def test_kills_change_nothing_and_cost_one_beginning_each(data: Any, made: Remembering) -> None:
    _, keys = undisturbed(made, {})
    failures = data.draw(st.dictionaries(st.sampled_from(keys), st.integers(1, 3), max_size=5), label="failures")
    kills = data.draw(st.lists(st.tuples(st.integers(1, 25), st.integers(0, 400)), max_size=12), label="kills")
    picks = data.draw(st.lists(st.integers(0, 11), max_size=60), label="picks")
    at_a_time = data.draw(st.integers(1, 4), label="at a time")
    expected, _ = undisturbed(made, failures)

    turn = iter(picks)
    restless: Counter[str] = Counter()  # busy or stopped: begun again without a failure
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(book_module, "BUSY_SECONDS", 0.0)
        store, killer = Store(folder), Kills(Path(folder) / LEDGER_FILE, iter(kills))

        def carry_out(ledger: Ledger) -> Book:
            book = Book(made, partial(killer.record, ledger))
            driver = Driver(book, at_a_time, failures, pick=lambda under_way: next(turn, 0) % under_way)
            book.replay(read_events(store))
            while not book.over:
                assert driver.fill(), "nothing is under way, nothing is next, and the book is not over"
                if (what := next(turn, 0)) > 9:
                    trial = driver.under_way.pop()
                    restless[trial.key] += 1
                    (book.busy if what == 10 else book.put_back)(trial.key)
                else:
                    driver.end_one()
            return book

        book = None
        while book is None:
            with contextlib.suppress(KilledError), Ledger(store) as ledger:
                book = carry_out(ledger)
        events = list(read_events(store))
        assert outcome(events) == expected
        assert max(Counter(event["key"] for event in of_kind(events, "done")).values()) == 1
        failed = Counter(event["key"] for event in of_kind(killer.written, "failed"))
        for key, times in Counter(event["key"] for event in of_kind(killer.written, "begun")).items():
            assert times <= 1 + killer.count + failed[key] + restless[key]
        again, _ = opened(made, events)
        assert states(again) == states(book) and again.over
