"""What trainings cost is measured once for each shape, as real trainings then take it, or refused in words."""

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from hydramix_dist.config.load import build
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.plan import make_plan
from hydramix_dist.orchestration.sweep.probe import Pace, Probe, probe, seconds_of, shape_of
from hydramix_dist.orchestration.tasks import ClassifierTask, GeneratorTask, Task
from hydramix_dist.store import Store

ARMS: dict[str, Any] = {
    "baseline": {},
    "hydramix": {"generator": "hydramix"},
    "half": {"generator": "hydramix", "classifier": {"mix_share": 0.25, "mix_until": 0.5}},
    "always": {"generator": "hydramix", "classifier": {"mix_share": 1.0}},
    "pixels": {"pixels": {"count": 2}},
}
Told = list[tuple[str, int, int]]


def tasks(dataset: Dataset, out: Path, **changes: Any) -> dict[str, Task]:
    """Return a plan's trainings by key; those of classifiers by their arm too."""
    settings = build(PilotSettings, tiny.PILOT | {"arms": ARMS, "shots": [2], "seeds": [0]} | changes, "test")
    plan = make_plan(settings, dataset, Store(out))
    return {task.arm if isinstance(task, ClassifierTask) else key: task for key, task in plan.tasks.items()}


def generator_of(made: dict[str, Task]) -> GeneratorTask:
    return next(task for task in made.values() if isinstance(task, GeneratorTask))


def changed(task: Task, **changes: Any) -> Any:
    return replace(task, settings=task.settings.model_copy(update=changes))


def recorder() -> tuple[Told, Callable[[str, int, int], None]]:
    told: Told = []
    return told, lambda *report: told.append(report)


# ---- shapes


def test_what_changes_no_step_changes_no_shape(dataset: Dataset, tmp_path: Path) -> None:
    made = tasks(dataset, tmp_path)
    others = tasks(dataset, tmp_path / "other", shots=[3], seeds=[5], runtime=tiny.PILOT["runtime"] | {"keep": 7})
    assert shape_of(generator_of(made)) == shape_of(generator_of(others))
    for arm in ARMS:
        assert shape_of(made[arm]) == shape_of(others[arm])
    optimizer = made["baseline"].settings.optimizer.model_copy(update={"lr": 0.7})
    for arm in ("baseline", "hydramix"):
        assert shape_of(changed(made[arm], images=4, optimizer=optimizer, dropout=0.45)) == shape_of(made[arm])
    assert shape_of(changed(generator_of(made), images=4, milestones=(0.1,))) == shape_of(generator_of(made))
    assert shape_of(made["hydramix"]) == shape_of(made["half"]) == shape_of(made["always"])


def test_what_changes_a_step_changes_the_shape(dataset: Dataset, tmp_path: Path) -> None:
    made = tasks(dataset, tmp_path)
    plain, generator = made["baseline"], generator_of(made)
    assert isinstance(plain, ClassifierTask)
    runtime = plain.runtime.model_copy
    shapes = [
        shape_of(task)
        for task in (
            plain,
            made["hydramix"],
            made["pixels"],
            changed(plain, batch=8),
            changed(plain, network="wrn-16-1"),
            changed(plain, side=32),
            changed(plain, dropout=0.0),
            replace(plain, method=plain.method.model_copy(update={"augmentation": "trivial"})),
            replace(plain, test_rows=plain.test_rows[:5]),
            replace(plain, validation_rows=(0, 1)),
            replace(plain, runtime=runtime(update={"threads": 2})),
            replace(plain, runtime=runtime(update={"micro_batch": 2})),
            generator,
            changed(generator, batch=8),
            changed(generator, group=None),
            changed(generator, mix=generator.settings.mix.model_copy(update={"count": 2})),
            changed(generator, network=generator.settings.network.model_copy(update={"width": 8})),
        )
    ]
    assert len(set(shapes)) == len(shapes)


# ---- seconds


def test_seconds_weigh_mixed_steps_and_count_evaluations(dataset: Dataset, tmp_path: Path) -> None:
    made = tasks(dataset, tmp_path)
    paces = {
        shape_of(made["baseline"]): Pace(1.0, 10.0),
        shape_of(made["hydramix"]): Pace(9.0, 20.0),
        shape_of(generator_of(made)): Pace(3.0, 5.0),
    }
    known = Probe(paces, 1, None, None)
    # 120 steps, 4 evaluations while training and one of the last weights
    assert seconds_of(made["baseline"], known) == 120 * 1 + 5 * 10
    assert seconds_of(made["hydramix"], known) == 120 * 5 + 5 * 20
    assert seconds_of(made["half"], known) == pytest.approx(120 * (0.125 * 9 + 0.875 * 1) + 5 * 20)
    assert seconds_of(made["always"], known) == 120 * 9 + 5 * 20
    assert seconds_of(generator_of(made), known) == 60 * 3 + 4 * 5
    assert seconds_of(changed(generator_of(made), images=8), known) == 2 * 3 + 2 * 5
    plain = made["baseline"]
    assert isinstance(plain, ClassifierTask)
    validated = replace(plain, test_rows=(), validation_rows=(0,))
    with pytest.raises(KeyError):
        seconds_of(validated, known)


# ---- measured


def test_measured_as_a_real_training_takes_it_and_only_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, cache = tasks(dataset, tmp_path / "run"), Store(tmp_path / "cache")
    chosen = [generator_of(made), made["baseline"], made["hydramix"]]
    told, tell = recorder()
    known = probe(chosen, cache, tell)
    assert known.paces.keys() == {shape_of(task) for task in chosen}
    assert told == [("measuring", done, 3) for done in range(4)]
    assert 200 * 2**20 < known.memory_bytes < 4 * 2**30, "torch and Ray at least, and nothing large"
    assert known.device_bytes is None and known.device_total_bytes is None
    assert not (tmp_path / "run").exists(), "nothing is left where the trainings will be"
    assert [name.partition("/")[0] for name in cache.list()] == ["probes"]

    for task in chosen[:2]:
        real = task.run(lambda done, total: None, tiny.never)["seconds"]
        assert real / 3 < seconds_of(task, known) < real * 3

    def no_process(*arguments: Any) -> None:
        raise AssertionError("measured a second time")

    monkeypatch.setattr("hydramix_dist.orchestration.sweep.probe.run_tasks", no_process)
    assert probe(chosen, cache, tell) == known
    with pytest.raises(AssertionError, match="second time"):
        probe(chosen[:2], cache, tell)
    (path,) = cache.list()
    cache.put(path, cache.read(path)[:-20])
    with pytest.raises(AssertionError, match="second time"):
        probe(chosen, cache, tell)
    assert f"{path} is damaged" in caplog.text


def test_a_finished_generator_needs_no_training(dataset: Dataset, tmp_path: Path) -> None:
    made = tasks(dataset, tmp_path / "run", arms={"always": ARMS["always"]})
    alone = [made["always"]]
    with pytest.raises(UserError, match="holds no run"):
        probe(alone, Store(tmp_path / "cache"), recorder()[1])
    generator_of(made).run(lambda done, total: None, tiny.never)
    assert probe(alone, Store(tmp_path / "cache"), recorder()[1]).paces.keys() == {shape_of(made["always"])}


# ---- refused


def test_memory_that_does_not_suffice_is_a_sentence(dataset: Dataset, tmp_path: Path) -> None:
    made = tasks(dataset, tmp_path)
    # A first convolution of 2 TB: torch's allocator refuses it.
    huge = changed(
        generator_of(made), network=generator_of(made).settings.network.model_copy(update={"width": 500_000})
    )
    with pytest.raises(UserError, match=r"memory ran out .* 'generator hydramix, N=2, seed 0'"):
        probe([huge], Store(tmp_path / "cache"), recorder()[1])
    assert not (tmp_path / "cache").exists()


def test_a_process_that_is_killed_is_a_sentence_and_not_tried_again(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tasks(dataset, tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    known: list[int] = []

    def killer() -> None:
        tiny.wait_for(lambda: bool(list(tmp_path.glob("*/*/steps/run.json"))))
        known.extend(tiny.workers_of(os.getpid()))
        for pid in known:
            tiny.kill(pid)

    thread = threading.Thread(target=killer)
    thread.start()
    with pytest.raises(UserError, match=r"memory ran out .* 'baseline, N=2, seed 0' .*killed.*classifier\.batch"):
        probe([made["baseline"], generator_of(made)], Store(tmp_path / "cache"), recorder()[1])
    thread.join()
    assert len(known) == 1
    assert not list(tmp_path.glob("hydramix-measured-*")), "nothing is left"


def test_a_training_that_cannot_be_is_named(dataset: Dataset, tmp_path: Path) -> None:
    generator = generator_of(tasks(dataset, tmp_path))
    small = replace(generator, runtime=generator.runtime.model_copy(update={"micro_batch": 2}))
    with pytest.raises(UserError, match=r"'generator hydramix, N=2, seed 0': runtime.micro_batch 2 is below the group"):
        probe([small], Store(tmp_path / "cache"), recorder()[1])
