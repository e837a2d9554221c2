"""A comparison's plan: fair subsets, every training once, names that change with what is trained and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.config.load import build
from hydramix_dist.config.schema import PilotSettings, RuntimeSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.pilot import what_is_compared
from hydramix_dist.orchestration.plan import Plan, choose_test_rows, default_concurrency, make_plan
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask
from hydramix_dist.store import Store

ARMS = {
    "baseline": {},
    "trivial": {"augmentation": "trivial"},
    "hydramix": {"generator": "hydramix"},
    "both": {"generator": "hydramix", "augmentation": "trivial"},
}


def plan(dataset: Dataset, **changes: Any) -> Plan:
    settings = build(PilotSettings, tiny.PILOT | {"arms": ARMS, "shots": [1, 3]} | changes, "test")
    return make_plan(settings, dataset, Store("/run"))


def generator_keys(
    dataset: Dataset, runtime: Any = None, seeds: Any = (0,), shots: Any = (3,), **changes: Any
) -> set[str]:
    generators = {"hydramix": tiny.PILOT["generators"]["hydramix"] | changes}
    more = {"runtime": runtime} if runtime else {}
    made = plan(dataset, generators=generators, seeds=list(seeds), shots=list(shots), **more)
    return {key for key in made.tasks if key.startswith("generators/")}


def test_generator_shared_by_arms_stands_once_and_before_its_classifiers(dataset: Dataset) -> None:
    made = plan(dataset)
    kinds = [type(task) for task in made.tasks.values()]
    assert kinds == ([GeneratorTask] + [ClassifierTask] * 4) * 4  # subset by subset
    assert len(made.needs) == 8
    for key, generator in made.needs.items():
        task, needed = made.tasks[key], made.tasks[generator]
        assert isinstance(task, ClassifierTask) and isinstance(needed, GeneratorTask)
        assert (task.rows, task.seed) == (needed.rows, needed.seed) and task.generator_url == needed.folder_url
        assert generator == f"generators/{task.generator_key}"
    for key in set(made.tasks) - set(made.needs):
        task = made.tasks[key]
        assert isinstance(task, GeneratorTask) or task.generator_url is None
    assert len({task.folder_url for task in made.tasks.values()}) == 20


def test_arms_share_subsets_seeds_classifier_and_test_images(dataset: Dataset) -> None:
    made = plan(dataset)
    tasks = [task for task in made.tasks.values() if isinstance(task, ClassifierTask)]
    for subset in made.subsets:
        group = [task for task in tasks if (task.shots, task.seed) == (subset.shots, subset.seed)]
        assert [task.arm for task in group] == list(ARMS)
        assert {(task.rows, task.validation_rows, task.test_rows, task.settings, task.runtime) for task in group} == {
            (subset.train, (), made.test_rows, group[0].settings, group[0].runtime)
        }
        counts = np.bincount(dataset.labels("train")[list(subset.train)], minlength=3)
        assert counts.tolist() == [subset.shots] * 3
    assert len({subset.train for subset in made.subsets}) == 4


def test_validation_part_is_cut_out_of_the_subset(dataset: Dataset, tmp_path: Path) -> None:
    images = tiny.image_folder(tmp_path / "images", {"a": 7, "b": 6}, test=2)
    import_dataset(images, str(tmp_path / "data"), segments=None, workers=1)
    larger = Dataset.open(str(tmp_path / "data"))
    (whole,), (cut,) = (plan(larger, shots=[5], seeds=[1], validation=v).subsets for v in (0.0, 0.4))
    assert sorted(cut.train + cut.validation) == sorted(whole.train) and whole.validation == ()
    labels = larger.labels("train")
    assert [np.bincount(labels[list(rows)]).tolist() for rows in (cut.train, cut.validation)] == [[3, 3], [2, 2]]
    with pytest.raises(UserError, match="at least 5 images of each class"):
        plan(dataset, shots=[5], validation=0.4)  # one class has but four


def test_generator_keys_follow_what_is_trained(dataset: Dataset) -> None:
    (plain,) = generator_keys(dataset)
    assert generator_keys(dataset) == {plain}
    changes: list[dict[str, Any]] = [
        {"mix": {"count": 2}},
        {"mix": {"count": 3, "mask": {"kind": "grid"}}},
        {"images": 244},
        {"mix": {"count": 3, "mask": {"downsample": "area"}}},
        {"segments": {"min_size": 61}},
        {"batch": 8},
    ]
    others = [generator_keys(dataset, **change) for change in changes]
    others += [generator_keys(dataset, seeds=[1]), generator_keys(dataset, shots=[2])]
    assert len({plain, *(key for keys in others for key in keys)}) == 1 + len(others)
    for runtime in (
        {"threads": 2},
        {"precision": "bf16"},
        {"checkpoints": 9},
        {"device": "cpu", "channels_last": True},
    ):
        assert generator_keys(dataset, runtime=runtime) == {plain}


def test_equal_settings_under_two_names_are_trained_once(dataset: Dataset) -> None:
    one = tiny.PILOT["generators"]["hydramix"]
    arms = {"a": {"generator": "first"}, "b": {"generator": "second"}}
    made = plan(dataset, generators={"first": one, "second": one}, arms=arms, shots=[2], seeds=[0])
    assert [key.split("/")[0] for key in made.tasks] == ["generators", "classifiers", "classifiers"]


def test_generator_that_no_arm_uses_is_not_trained(dataset: Dataset) -> None:
    made = plan(dataset, arms={"baseline": {}}, shots=[2], seeds=[0])
    assert list(made.tasks) == ["classifiers/baseline-n2-seed0"]


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    limit=st.one_of(st.none(), st.integers(1, 120)),
    order=st.randoms(use_true_random=False),
)
def test_test_rows_are_even_over_classes(counts: list[int], limit: int | None, order: Any) -> None:
    listed = [label for label, n in enumerate(counts) for _ in range(n)]
    order.shuffle(listed)
    labels = np.array(listed)
    rows = choose_test_rows(labels, len(counts), limit)
    assert list(rows) == sorted(set(rows)) and all(0 <= row < len(labels) for row in rows)
    if limit is None or limit >= len(labels):
        assert len(rows) == len(labels)
        return
    share = max(1, limit // len(counts))
    chosen = np.bincount(labels[list(rows)], minlength=len(counts))
    assert chosen.tolist() == [min(share, n) for n in counts]
    assert rows == choose_test_rows(labels, len(counts), limit)


def test_workers_fill_the_cores() -> None:
    runtime = RuntimeSettings(device="cpu", threads=2)
    assert [default_concurrency(runtime, cores) for cores in (1, 2, 3, 4, 8)] == [1, 1, 1, 2, 4]


def test_task_names_say_arm_shots_and_seed(dataset: Dataset) -> None:
    names = [task.name for task in plan(dataset).tasks.values()]
    assert "generator hydramix, N=1, seed 0" in names and "both, N=3, seed 1" in names
    assert len(set(names)) == len(names)


def test_every_folder_lies_in_the_run(dataset: Dataset) -> None:
    for key, task in plan(dataset).tasks.items():
        assert Path(task.folder_url) == Path("/run") / key


def test_a_pilot_is_the_same_on_any_number_of_workers_and_trainings_at_a_time() -> None:
    def compared(**changes: Any) -> dict[str, Any]:
        return what_is_compared(build(PilotSettings, tiny.PILOT | changes, "test"))

    assert compared(distributed={"workers": 4, "max_failures": 9}, concurrent=1) == compared()
    assert compared(seeds=[0]) != compared()
