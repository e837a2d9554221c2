"""What a dry run says: trainings by kind, their time, the clock's, and what sharing generators spares."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from hydramix_dist.config.load import build
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.orchestration.plan import Plan, make_plan
from hydramix_dist.orchestration.sweep.forecast import forecast, lines
from hydramix_dist.orchestration.sweep.probe import Pace, Probe, shape_of
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask
from hydramix_dist.store import Store

ARMS: dict[str, Any] = {
    "baseline": {},
    "hydramix": {"generator": "hydramix", "classifier": {"mix_share": 1.0}},
    "both": {"generator": "hydramix", "augmentation": "trivial", "classifier": {"mix_share": 1.0}},
}
GENERATOR, CLASSIFIER = 60 * 100.0, 120 * 10.0  # steps x seconds


@pytest.fixture
def plan(dataset: Dataset, tmp_path: Path) -> Plan:
    """Two seeds of three arms, of which two share a generator."""
    settings = build(PilotSettings, tiny.PILOT | {"arms": ARMS, "shots": [2]}, "test")
    return make_plan(settings, dataset, Store(tmp_path))


def measured(plan: Plan) -> Probe:
    """Return a probe in which steps of generators take 100 s, of classifiers 10 s, and evaluations nothing."""
    paces = {
        shape_of(task): Pace(100.0 if isinstance(task, GeneratorTask) else 10.0, 0.0) for task in plan.tasks.values()
    }
    return Probe(paces, 1, None, None)


def test_counts_and_seconds_by_kind(plan: Plan) -> None:
    found = forecast(plan.tasks, plan.needs, [], len(plan.needs), measured(plan), 2)
    assert {kind: part.trainings for kind, part in found.parts.items()} == {
        "generators": 2,
        "candidates": 0,
        "classifiers": 6,
    }
    assert found.parts["generators"].seconds == 2 * GENERATOR
    assert found.parts["classifiers"].seconds == 6 * CLASSIFIER
    assert found.total.trainings == 8 and found.total.seconds == 2 * GENERATOR + 6 * CLASSIFIER
    assert found.elapsed == (2 * GENERATOR + 6 * CLASSIFIER) / 2


def test_sharing_spares_a_generator_for_each_arm_but_one(plan: Plan) -> None:
    found = forecast(plan.tasks, plan.needs, [], len(plan.needs), measured(plan), 2)
    assert (found.generators, found.spared, found.spared_seconds) == (2, 2, 2 * GENERATOR)
    more = forecast(plan.tasks, plan.needs, [], 10, measured(plan), 2)  # candidates that are not planned yet
    assert (more.spared, more.spared_seconds) == (8, 8 * GENERATOR)


def test_finished_trainings_take_no_more_time(plan: Plan) -> None:
    finished = list(plan.tasks)[:3]  # a generator and two classifiers
    found = forecast(plan.tasks, plan.needs, finished, 4, measured(plan), 1)
    assert found.parts["generators"].finished == 1 and found.parts["generators"].seconds == GENERATOR
    assert found.parts["classifiers"].finished == 2 and found.parts["classifiers"].seconds == 4 * CLASSIFIER
    assert found.elapsed == GENERATOR + 4 * CLASSIFIER and found.spared_seconds == 2 * GENERATOR
    over = forecast(plan.tasks, plan.needs, list(plan.tasks), 4, measured(plan), 1)
    assert over.elapsed == 0 and over.total.finished == 8


def test_many_at_a_time_still_wait_for_the_generator(plan: Plan) -> None:
    found = forecast(plan.tasks, plan.needs, [], 4, measured(plan), 100)
    assert found.elapsed == GENERATOR + CLASSIFIER


def test_candidates_are_a_kind_of_their_own(plan: Plan) -> None:
    key, task = next((k, t) for k, t in plan.tasks.items() if isinstance(t, ClassifierTask))
    both = {**plan.tasks, key.replace("classifiers/", "candidates/"): replace(task, folder_url="/elsewhere")}
    found = forecast(both, plan.needs, [], 4, measured(plan), 1)
    assert found.parts["candidates"].trainings == 1 and found.parts["candidates"].seconds == CLASSIFIER


def test_lines_for_a_person(plan: Plan) -> None:
    assert lines(forecast(plan.tasks, plan.needs, list(plan.tasks)[:1], 4, measured(plan), 2)) == [
        "             trainings  finished  time left",
        "generators           2         1      1.7 h",
        "classifiers          6         0      2.0 h",
        "in all               8         1      3.7 h",
        "sharing: 2 generators are trained instead of 4, which spares 2 trainings and 3.3 h",
        "expected: 2.0 h by the clock with 2 at a time, if each is as fast beside the others as it was alone; the "
        "start of processes is not counted",
    ]


def test_nothing_measured_is_said_and_not_guessed(plan: Plan) -> None:
    found = forecast(plan.tasks, plan.needs, [], 4, None, 2)
    assert found.total.seconds is None and found.elapsed is None and found.spared_seconds is None
    text = "\n".join(lines(found))
    assert "not measured" in text and "spares 2 trainings" in text and "expected" not in text


def test_nothing_to_share_is_not_mentioned(dataset: Dataset, tmp_path: Path) -> None:
    settings = build(PilotSettings, tiny.PILOT | {"arms": {"baseline": {}}}, "test")
    made = make_plan(settings, dataset, Store(tmp_path))
    assert not any("sharing" in line for line in lines(forecast(made.tasks, {}, [], 0, measured(made), 1)))
