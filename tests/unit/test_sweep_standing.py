"""Where a sweep stands, told from its folder alone, and the same as its driver's book says."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_books import Driver, result_of, tiny_images

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build, configs_root, dump, read_yaml
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.design import Design
from hydramix_dist.orchestration.sweep.ledger import Event, Ledger, read_events
from hydramix_dist.orchestration.sweep.run import identity_of
from hydramix_dist.orchestration.sweep.standing import read_settings, read_standing, results_of
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.store.run import RunFolder
from hydramix_dist.training import environment

SMOKE = read_yaml(configs_root() / "sweep" / "smoke.yaml")
PLAIN: dict[str, Any] = SMOKE | {"search": None, "axes": {}}
BASELINE = "classifiers/faces/baseline-n{}-seed{}"
HYDRAMIX = "classifiers/faces/hydramix-n{}-seed{}"
DATA = {"event": "data", "name": "faces", "url": "/faces", "fingerprint": "f"}


@pytest.fixture(autouse=True)
def _driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Hold the sweep's folder as its driver does, but for tests of drivers that are gone."""
    with contextlib.nullcontext() if "gone" in request.node.name else exclusively(Store(tmp_path)):
        yield


def settings_of(**changes: Any) -> SweepSettings:
    return build(SweepSettings, PLAIN | changes, "test")


def begin(folder: Path, settings: SweepSettings) -> Store:
    """Make the folder of a sweep that has not begun a training yet."""
    store = Store(folder)
    facts = environment.facts(settings.runtime, torch.device("cpu"))
    RunFolder.begin(store, "sweep", identity_of(settings), facts)
    return store


def write(store: Store, *events: Event) -> None:
    with Ledger(store) as ledger:
        for event in events:
            ledger.write(event)


def session(settings: SweepSettings) -> Event:
    return {"event": "session", "settings": dump(settings)}


def facts(key: str, kind: str = "classifier", arm: str | None = "baseline", shots: int = 1, seed: int = 0) -> Event:
    return {"key": key, "kind": kind, "data": "faces", "arm": arm, "shots": shots, "seed": seed, "name": f"the {key}"}


def done(key: str, accuracy: float = 0.5, generator: str | None = None) -> Event:
    result = {"seconds": 2.0, "accuracy": accuracy, "balanced_accuracy": accuracy, "test_images": 6}
    return {"event": "done", "key": key, "generator_key": generator, **result}


def states(store: Store) -> dict[str, str]:
    standing = read_standing(store)
    found = {key: line.state for key, line in standing.lines.items()}
    assert standing.counts == Counter(found.values())
    return found


# ---- states


def test_what_a_driver_that_is_gone_ran_is_pending(tmp_path: Path) -> None:
    settings = settings_of()
    store = begin(tmp_path, settings)
    key = BASELINE.format(1, 0)
    write(store, session(settings), DATA, {"event": "begun", **facts(key)})
    with exclusively(store):
        assert read_standing(store).state == "running" and states(store)[key] == "running"
    assert read_standing(store).state == "killed" and states(store)[key] == "pending"


def test_before_its_first_session_nothing_is_known(tmp_path: Path) -> None:
    store = begin(tmp_path, settings_of())
    standing = read_standing(store)
    assert (standing.lines, standing.data, standing.cells, standing.sessions) == ({}, {}, [], [])
    assert standing.state == "running" and results_of(standing).parts == ()


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        read_standing(Store(tmp_path / "nothing"))
    RunFolder.begin(Store(tmp_path / "pilot"), "pilot", {}, {})
    with pytest.raises(UserError, match="holds a pilot run, not a sweep"):
        read_standing(Store(tmp_path / "pilot"))


def test_cells_stand_in_the_order_to_begin_them(tmp_path: Path) -> None:
    settings = settings_of(priorities={"hydramix": 1})
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA)
    found = states(store)
    assert set(found.values()) == {"pending"}
    assert list(found)[:5] == [*(HYDRAMIX.format(n, s) for s in (0, 1) for n in (1, 5)), BASELINE.format(1, 0)]
    assert len(found) == 3 * 2 * 2


def test_each_training_by_its_last_event(tmp_path: Path) -> None:
    settings = settings_of()
    store = begin(tmp_path, settings)
    generator, one, two, three = "generators/abc", BASELINE.format(1, 0), BASELINE.format(5, 0), BASELINE.format(1, 1)
    write(
        store,
        session(settings),
        DATA,
        {"event": "begun", **facts(generator, "generator", None)},
        {"event": "begun", **facts(one)},
        {"event": "failed", "error": "it broke", "final": False, **facts(one)},
        {"event": "begun", **facts(two)},
        {"event": "failed", "error": "out of memory", "final": False, **facts(two)},
        {"event": "begun", **facts(two)},
        {"event": "failed", "error": "out of memory again", "final": True, **facts(two)},
        {"event": "begun", **facts(three)},
        {"event": "failed", "error": "it broke", "final": False, **facts(three)},
        {"event": "begun", **facts(three)},
        done(three),
    )
    found = states(store)
    assert (found[generator], found[one], found[two], found[three]) == ("running", "pending", "failed", "done")
    lines = read_standing(store).lines
    assert [(lines[key].attempts, lines[key].error) for key in (generator, one, two, three)] == [
        (1, None),
        (1, "it broke"),
        (2, "out of memory again"),
        (2, None),
    ]
    assert lines[three].result["accuracy"] == 0.5 and lines[generator].facts["name"] == "the generators/abc"
    times = [event["time"] for event in read_events(store) if event.get("key") == three]
    assert lines[three].changed == times[-1] and lines[HYDRAMIX.format(1, 0)].changed == 0.0
    write(store, {"event": "again", "keys": [two]})
    assert states(store)[two] == "pending"


def test_what_a_dead_driver_ran_is_pending_at_the_next_session(tmp_path: Path) -> None:
    settings = settings_of()
    key = BASELINE.format(1, 0)
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA, {"event": "begun", **facts(key)})
    assert states(store)[key] == "running"  # as far as can be told from here
    write(store, session(settings), DATA)
    assert states(store)[key] == "pending" and read_standing(store).lines[key].attempts == 1
    write(store, {"event": "begun", **facts(key)}, {"event": "ended", "reason": "stopped"})
    assert states(store)[key] == "pending"


def test_what_a_limit_left_is_left_until_the_next_session(tmp_path: Path) -> None:
    settings = settings_of(limits={"trials": 1})
    key = BASELINE.format(1, 0)
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA, {"event": "begun", **facts(key)}, done(key))
    write(store, {"event": "ended", "reason": "limit"})
    assert Counter(states(store).values()) == {"done": 1, "left": 11}
    write(store, session(settings_of(limits={"trials": 5})), DATA)
    assert Counter(states(store).values()) == {"done": 1, "pending": 11}
    assert read_standing(store).settings.limits.trials == 5
    write(store, {"event": "ended", "reason": "over"})
    assert Counter(states(store).values()) == {"done": 1, "pending": 11}


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    settings = settings_of()
    store = begin(tmp_path, settings)
    write(
        store, session(settings), DATA, {"event": "begun", **facts(BASELINE.format(1, 0))}, done(BASELINE.format(1, 0))
    )
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert states(store)[BASELINE.format(1, 0)] == "running"


# ---- settings


def test_settings_are_those_of_the_last_session(tmp_path: Path) -> None:
    first = settings_of(limits={"hours": 2}, priorities={"baseline": 1})
    store = begin(tmp_path, first)
    write(store, session(first), session(settings_of(limits={"hours": 3}, concurrent=2)))
    settings, whole = read_settings(store)
    assert settings == settings_of(limits={"hours": 3}, concurrent=2) and whole.arms.keys() == SMOKE["arms"].keys()
    assert read_settings(store, ["limits.hours=8"])[0].limits.hours == 8
    with pytest.raises(UserError, match=r"run\.json with the options given: 'limits\.hours': input should be greater"):
        read_settings(store, ["limits.hours=0"])


def test_arms_and_axes_keep_their_order(tmp_path: Path) -> None:
    """The order of the axes is in the names of arms, and so in every key; that of the arms is the tables'."""
    axes = {"generator.mix.count": [2, 3], "classifier.batch": [8, 4]}
    arms = {"zero": {}, "hydramix": {"generator": "hydramix"}, "also": {"augmentation": "trivial"}}
    settings = settings_of(axes=axes, arms=arms)
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA)
    expected = expanded(settings, "test")
    assert "hydramix-count=2-batch=8" in expected.arms
    assert list(read_settings(store)[1].arms) == list(expected.arms)


# ---- searches

SEARCHED: dict[str, Any] = {"search": SMOKE["search"], "axes": SMOKE["axes"]}


def candidate(index: int) -> Event:
    key = f"candidates/faces/baseline-n5-c{index:03d}-seed0"
    return facts(key, "candidate", shots=5)


def test_candidates_stand_where_they_ended(tmp_path: Path) -> None:
    settings = settings_of(**SEARCHED)
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA)
    assert read_standing(store).candidates_to_ask == 4 * 3 and len(states(store)) == 4 * 4
    for index in range(3):
        write(store, {"event": "asked", "group": "faces/baseline-n5", "index": index, "values": {}})
        write(store, {"event": "begun", **candidate(index)})
    write(
        store,
        {"event": "validated", "key": candidate(0)["key"], "images": 128, "value": 0.25},
        {"event": "early", "key": candidate(0)["key"], "images": 128, "value": 0.25},
        {"event": "done", "key": candidate(1)["key"], "seconds": 1.5, "value": 0.75},
    )
    standing = read_standing(store)
    assert [standing.lines[candidate(n)["key"]].state for n in range(3)] == ["early", "done", "running"]
    assert standing.candidates_to_ask == 4 * 3 - 3
    lines = {line.key: line for line in results_of(standing).trials}
    early = lines[candidate(0)["key"]]
    assert (early.state, early.value, early.seconds, early.kind) == ("early", 0.25, None, "candidate")
    assert (lines[candidate(1)["key"]].value, lines[candidate(1)["key"]].seconds) == (0.75, 1.5)


def test_a_choice_is_told_with_what_it_is_for(tmp_path: Path) -> None:
    settings = settings_of(**SEARCHED)
    store = begin(tmp_path, settings)
    values = {"classifier.optimizer.lr": 0.0625}
    choice = {"event": "chosen", "group": "faces/baseline-n5", "index": 1, "values": values, "score": 0.75}
    write(store, session(settings), DATA, choice | {"candidates": 2})
    (told,) = results_of(read_standing(store)).choices
    assert (told.data, told.arm, told.shots, told.for_shots) == ("faces", "baseline", 5, (1, 5))
    assert (told.values, told.score, told.candidates) == (values, 0.75, 2)
    assert set(states(store).values()) == {"pending"}


def test_where_nothing_could_be_chosen_the_arm_has_failed(tmp_path: Path) -> None:
    settings = settings_of(**SEARCHED)
    store = begin(tmp_path, settings)
    write(store, session(settings), DATA, {"event": "unchosen", "group": "faces/baseline-n5", "error": "none ended"})
    failed = {key: line.error for key, line in read_standing(store).lines.items() if line.state == "failed"}
    assert failed == {BASELINE.format(n, seed): "none ended" for n in (1, 5) for seed in (0, 1)}
    assert results_of(read_standing(store)).choices == ()


# ---- results


def test_results_are_of_what_is_finished(tmp_path: Path) -> None:
    settings = settings_of()
    store = begin(tmp_path, settings)
    generator = facts("generators/abc", "generator", None)
    write(store, session(settings), DATA, {"event": "begun", **generator})
    write(store, {"event": "done", "key": generator["key"], "seconds": 8.0})
    for key, accuracy, uses in (
        (BASELINE.format(1, 0), 0.25, None),
        (BASELINE.format(5, 0), 0.5, None),
        (HYDRAMIX.format(1, 0), 0.75, "abc"),
    ):
        write(store, {"event": "begun", **facts(key)}, done(key, accuracy, uses))
    results = results_of(read_standing(store))
    assert results.name == tmp_path.name and len(results.trials) == 13
    (part,) = results.parts
    assert part.name == "faces" and {arm.name for arm in part.arms} == SMOKE["arms"].keys()
    assert [(run.arm, run.shots, run.seed, run.accuracy, run.generator_seconds) for run in part.runs] == [
        ("baseline", 1, 0, 0.25, 0.0),
        ("hydramix", 1, 0, 0.75, 8.0),
        ("baseline", 5, 0, 0.5, 0.0),
    ]
    assert len(part.missing) == 9
    assert (results.generators.needed, results.generators.trained, results.generators.seconds) == (1, 1, 8.0)
    assert results.settings["limits"]["attempts"] == 3 and results.machine["device"] == "cpu"
    assert {"hydramix_dist", "python", "torch"} <= results.versions.keys()


# ---- the same as the driver's book


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_images(tmp_path_factory.mktemp("faces"))


def check_agreement(store: Store, book: Book) -> None:
    """Fail unless the folder tells of each training what its driver's book knows."""
    lines = read_standing(store).lines
    for key, entry in book.entries.items():
        if key not in lines:  # of generators and candidates the folder knows those begun
            assert entry.state == "pending" and entry.trial.kind != "classifier"
            continue
        line = lines[key]
        assert (line.state, line.error if line.state == "failed" else None) == (
            entry.state,
            entry.error if entry.state == "failed" else None,
        )
        assert {name: line.facts[name] for name in entry.trial.facts} == entry.trial.facts
        assert {name: line.result.get(name) for name in entry.result} == dict(entry.result)
    for key in set(lines) - set(book.entries):  # cells whose settings are not chosen
        assert lines[key].state in ("pending", "failed") and lines[key].facts["kind"] == "classifier"


def start(store: Store, settings: SweepSettings, faces: Dataset, ledger: Ledger) -> Book:
    design = Design(settings, expanded(settings, "test"), {"faces": faces}, store, store)
    book = Book(design, ledger.write)
    book.replay(read_events(store))
    return book


def test_it_agrees_with_the_book_after_every_step(tmp_path: Path, faces: Dataset) -> None:
    settings = settings_of(**SEARCHED)
    store = begin(tmp_path, settings)
    broken = "candidates/faces/hydramix-count=2-n5-c001-seed0"
    with Ledger(store) as ledger:
        ledger.write(session(settings))
        ledger.write(DATA)
        book = start(store, settings, faces, ledger)
        driver = Driver(book, at_a_time=2, failures={broken: 3, BASELINE.format(5, 1): 1})
        steps = 0
        while not book.over:
            driver.fill()
            check_agreement(store, book)
            trial = driver.under_way[0]
            if trial.index == 2:
                driver.under_way.pop(0)
                book.early(trial.key, 64, 0.5)
            else:
                driver.end_one()
            check_agreement(store, book)
            steps += 1
        ledger.write({"event": "ended", "reason": "over"})
    standing = read_standing(store)
    assert steps > 30 and standing.counts == book.counts and standing.candidates_to_ask == 0
    assert standing.counts["failed"] == 1 and standing.counts["early"] == 4
    assert {name: event["values"] for name, event in standing.chosen.items()}.keys() == book_groups(settings, faces)
    assert len(results_of(standing).parts[0].runs) == 16


def book_groups(settings: SweepSettings, faces: Dataset) -> set[str]:
    return {f"faces/{arm}-n5" for arm in expanded(settings, "test").arms}


def test_it_agrees_when_failed_ones_got_another_chance(tmp_path: Path, faces: Dataset) -> None:
    settings = settings_of(**SEARCHED | {"axes": {}}, arms={"baseline": {}}, limits={"attempts": 1})
    store = begin(tmp_path, settings)
    with Ledger(store) as ledger:
        ledger.write(session(settings))
        ledger.write(DATA)
        book = start(store, settings, faces, ledger)
        Driver(book, failures={candidate(index)["key"]: 1 for index in range(3)}).run()
        check_agreement(store, book)
        assert Counter(states(store).values()) == {"failed": 3 + 4}  # and the classifiers they were to choose for
        ledger.write({"event": "ended", "reason": "over"})

        again = start(store, settings, faces, ledger)
        ledger.write(session(settings))
        again.only_failed()
        check_agreement(store, again)
        assert Counter(states(store).values()) == {"pending": 3 + 4}
        Driver(again).run()
        check_agreement(store, again)
        assert Counter(states(store).values()) == {"done": 3 + 4}


def test_results_of_a_book_name_the_generators_it_trained(tmp_path: Path, faces: Dataset) -> None:
    settings = settings_of()
    store = begin(tmp_path, settings)
    with Ledger(store) as ledger:
        ledger.write(session(settings))
        ledger.write(DATA)
        book = start(store, settings, faces, ledger)
        Driver(book, at_a_time=3).run()
    results = results_of(read_standing(store))
    assert (results.generators.needed, results.generators.trained, results.generators.seconds) == (4, 4, 8.0)
    for run in results.parts[0].runs:
        trial = book.entries[f"classifiers/faces/{run.arm}-n{run.shots}-seed{run.seed}"].trial
        assert (run.accuracy, run.generator_key) == (result_of(trial)["accuracy"], result_of(trial)["generator_key"])
        assert run.generator_seconds == (2.0 if run.arm == "hydramix" else 0.0)
