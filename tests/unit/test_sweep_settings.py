"""A sweep's settings: what stands where nothing is given, and a sentence for whatever is not allowed."""

from pathlib import Path
from typing import Any

import pytest

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import AxisSettings, LimitSettings, SearchSettings, SpaceSettings, SweepSettings
from hydramix_dist.errors import UserError

READY = sorted((configs_root() / "sweep").glob("*.yaml"))
LR = {"classifier.optimizer.lr": {"log": [0.005, 0.1]}}


def settings(**changes: Any) -> SweepSettings:
    return build(SweepSettings, {"arms": {"baseline": {}, "hydramix": {"generator": "hydramix"}}} | changes, "s.yaml")


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        settings(**changes)
    return str(error.value)


def searching(**space: Any) -> dict[str, Any]:
    return {"search": {"at": 5, "space": {"classifier.optimizer.lr": space}}}


# ---- what stands where nothing is given


def test_a_sweep_is_a_pilot_with_nothing_varied() -> None:
    plain = settings()
    assert (plain.data, plain.axes, plain.search, plain.priorities) == (None, {}, None, {})
    assert plain.limits == LimitSettings(trials=None, hours=None, gpu_hours=None, attempts=3, silent_minutes=15.0)
    pilot = build(PilotSettings, {"arms": {"baseline": {}, "hydramix": {"generator": "hydramix"}}}, "s.yaml")
    assert {name: getattr(plain, name) for name in PilotSettings.model_fields} == dict(pilot)


def test_a_search_draws_twenty_settings_on_one_subset() -> None:
    search = settings(search={"space": LR}).search
    assert search is not None
    assert search == SearchSettings(space={"classifier.optimizer.lr": SpaceSettings(log=(0.005, 0.1))})
    assert (search.method, search.trials, search.seeds, search.at) == ("random", 20, (0,), None)
    assert (search.validation, search.seed, search.reduction, search.grace) == (0.2, 0, 3, 0.2)


def test_an_axis_is_a_list_or_a_list_for_some_arms() -> None:
    axes = settings(
        axes={
            "generator.mix.count": [2, 3],
            "classifier.batch": {"values": [4, 8], "arms": ["baseline"]},
            "generator.group": [None, 4],
            "generator.mix.self_pairs": [True, 1],
        }
    ).axes
    assert axes["generator.mix.count"] == AxisSettings(values=(2, 3), arms=None)
    assert axes["classifier.batch"] == AxisSettings(values=(4, 8), arms=("baseline",))
    assert axes["generator.group"].values == (None, 4)
    assert [type(value) for value in axes["generator.mix.self_pairs"].values] == [bool, int]  # true is no 1


def test_values_keep_their_types() -> None:
    space = SpaceSettings(choice=(1, 1.5, "trivial", True, None))
    assert [type(value) for value in space.ends()] == [int, float, str, bool, type(None)]
    assert SpaceSettings(log=(1, 2)).ends() == (1.0, 2.0) and SpaceSettings(uniform=(0, 2)).ends() == (0.0, 2.0)


def test_whole_numbers_are_times_too() -> None:
    limits = settings(limits={"hours": 8, "gpu_hours": 2, "silent_minutes": 3}).limits
    assert (limits.hours, limits.gpu_hours, limits.silent_minutes) == (8.0, 2.0, 3.0)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"axes": {"classifier.batch": []}}, "'axes.classifier.batch.values': at least one is needed, none was given"),
        ({"axes": {"classifier.batch": [4, 8, 4]}}, "'axes.classifier.batch': lists a value twice: 4, 8, 4"),
        ({"axes": {"classifier.batch": 4}}, "'axes.classifier.batch': a section of keys is needed, one value was"),
        (
            {"axes": {"classifier.batch": {"values": [4], "arms": ["baselin"]}}},
            "axes.classifier.batch.arms: there is no arm 'baselin'; there are baseline, hydramix",
        ),
        (
            {"axes": {"classifier.batch": {"values": [4], "arm": ["baseline"]}}},
            "unknown key 'axes.classifier.batch.arm' (did you mean 'arms'?); allowed here: arms, values",
        ),
        (
            {"axes": {"generator.milestones": [[0.5], [0.2, 0.8]]}},
            "'axes.generator.milestones': an axis has single values (texts, numbers, true, false, null), not [0.5]",
        ),
        ({"priorities": {"hydra": 1}}, "priorities.hydra: there is no arm 'hydra'; there are baseline, hydramix"),
        ({"priorities": {"hydramix": 0.5}}, "'priorities.hydramix': input should be a valid integer"),
        ({"data": ["faces", "leaves", "faces"]}, "data lists a value twice: faces, leaves, faces"),
        ({"data": []}, "'data': at least one is needed, none was given"),
        ({"data": "faces"}, "'data': input should be a valid tuple (given: 'faces')"),
        ({"shots": [5, 5]}, "shots lists a value twice"),
        ({"seeds": [1, 1]}, "seeds lists a value twice"),
    ],
)
def test_lists_and_arms(changes: dict[str, Any], sentence: str) -> None:
    assert refusal(**changes).startswith(f"s.yaml: {sentence}")


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, "needs exactly one of log, uniform and choice, has none"),
        ({"log": [0.1, 1], "choice": [1]}, "needs exactly one of log, uniform and choice, has log and choice"),
        ({"log": [0, 1]}, "log needs a low above 0, has 0"),
        ({"log": [-0.5, 1]}, "log needs a low above 0, has -0.5"),
        ({"log": [1, 0.1]}, "log needs [low, high] with low below high, has [1.0, 0.1]"),
        ({"uniform": [2, 2]}, "uniform needs [low, high] with low below high, has [2.0, 2.0]"),
    ],
)
def test_spaces(space: dict[str, Any], sentence: str) -> None:
    assert refusal(**searching(**space)) == f"s.yaml: 'search.space.classifier.optimizer.lr': {sentence}"


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ({"space": {}}, "'search.space': at least one is needed, none was given"),
        ({}, "'search.space': field required"),
        (
            {"method": "grid", "space": LR},
            "'search.method': input should be 'random', 'asha' or 'optuna' (given: 'grid')",
        ),
        ({"trials": 0, "space": LR}, "'search.trials': input should be greater than or equal to 1 (given: 0)"),
        ({"seeds": [], "space": LR}, "'search.seeds': at least one is needed, none was given"),
        ({"at": 4, "space": LR}, "'search.at': input should be greater than or equal to 5 (given: 4)"),
        ({"validation": 0, "space": LR}, "'search.validation': input should be greater than 0 (given: 0)"),
        ({"validation": 1, "space": LR}, "'search.validation': input should be less than 1 (given: 1)"),
        ({"reduction": 1, "space": LR}, "'search.reduction': input should be greater than or equal to 2 (given: 1)"),
        ({"grace": 0, "space": LR}, "'search.grace': input should be greater than 0 (given: 0)"),
        ({"grace": 1.5, "space": LR}, "'search.grace': input should be less than or equal to 1 (given: 1.5)"),
        ({"trails": 3, "space": LR}, "unknown key 'search.trails' (did you mean 'trials'?); allowed here: at, "),
    ],
)
def test_searches(search: dict[str, Any], sentence: str) -> None:
    assert refusal(search=search).startswith(f"s.yaml: {sentence}")


def test_choices_and_ends_may_not_be_empty() -> None:
    text = refusal(**searching(choice=[]))
    assert text == "s.yaml: 'search.space.classifier.optimizer.lr.choice': at least one is needed, none was given"
    assert "'search.space.classifier.optimizer.lr.log" in refusal(**searching(log=[0.1]))


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"trials": 0}, "'limits.trials': input should be greater than or equal to 1 (given: 0)"),
        ({"hours": 0}, "'limits.hours': input should be greater than 0 (given: 0)"),
        ({"gpu_hours": -1}, "'limits.gpu_hours': input should be greater than 0 (given: -1)"),
        ({"attempts": 0}, "'limits.attempts': input should be greater than or equal to 1 (given: 0)"),
        ({"silent_minutes": 0}, "'limits.silent_minutes': input should be greater than 0 (given: 0)"),
        ({"hour": 8}, "unknown key 'limits.hour' (did you mean 'hours'?); allowed here: attempts, gpu_hours, hours, "),
    ],
)
def test_limits(limits: dict[str, Any], sentence: str) -> None:
    assert refusal(limits=limits).startswith(f"s.yaml: {sentence}")


def test_unknown_keys_name_the_nearest() -> None:
    assert "s.yaml: unknown key 'limit' (did you mean 'limits'?); allowed here: arms, axes, " in refusal(limit={})
    assert "(did you mean 'priorities'?)" in refusal(priority={"hydramix": 1})


def test_too_few_images_to_choose_settings_by() -> None:
    text = refusal(shots=[1, 4, 5], search={"space": LR})
    assert text == (
        "s.yaml: search: with N = 1, 4 nothing can be held out to choose settings by (at least 5 images a class are "
        "needed); set search.at to the N to choose them at, or leave these N out"
    )
    assert settings(shots=[1, 4, 5], search={"space": LR, "at": 5}).shots == (1, 4, 5)
    assert settings(shots=[5, 10], search={"space": LR}).shots == (5, 10)
    assert settings(shots=[1]).search is None


def test_twice_the_same_subset_to_search_on() -> None:
    assert refusal(search={"space": LR, "seeds": [0, 0]}) == "s.yaml: 'search': seeds lists a value twice: 0, 0"


# ---- the ready ones


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_sweeps_can_be_run(path: Path) -> None:
    ready = build(SweepSettings, read_yaml(path), str(path))
    whole = expanded(ready, str(path))
    assert all(any(arm == name or arm.startswith(f"{name}-") for arm in whole.arms) for name in ready.arms)
    assert (whole.shots, whole.seeds, whole.runtime) == (ready.shots, ready.seeds, ready.runtime)


def test_there_are_ready_sweeps() -> None:
    assert "smoke" in [path.stem for path in READY]
