"""Stopping, going on, losses that are not finite: the weights are those of an undisturbed training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.training.loop import NonFiniteLossError, run

CPU = torch.device("cpu")
Train = Callable[..., dict[str, Any]]


def final(folder: Path) -> dict[str, Any]:
    """Return all that the last checkpoint of a run holds, by engine: weights, moments, steps."""
    checkpoint = load_newest(Store(folder))
    assert checkpoint is not None
    return {
        name: (
            weights_digest(state.weights),
            {moment: weights_digest(tensors) for moment, tensors in state.moments.items()},
            state.step,
        )
        for name, state in checkpoint.engines.items()
    }


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without what a clock and the memory say."""
    return {key: value for key, value in result.items() if key not in ("seconds", "cpu_seconds", "peak_memory_bytes")}


# ---- stopping and going on

STOPS = [[1], [5], [8], [12], [2, 1], [5, 4]]  # steps of each attempt; 4, 8 and 12 are checkpoints by themselves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Train, RuntimeSettings], tuple[Any, Any]]:
    """What a training comes to that nothing disturbs, each trained once."""
    known: dict[tuple[str, str], tuple[Any, Any]] = {}

    def of(train: Train, runtime: RuntimeSettings) -> tuple[Any, Any]:
        key = train.__name__, runtime.model_dump_json()
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            result = measured(train(folder, runtime=runtime))
            known[key] = result, final(folder)
        return known[key]

    return of


@pytest.mark.parametrize("train", [tiny.run_generator, tiny.run_classifier], ids=["generator", "classifier"])
@pytest.mark.parametrize(
    ("runtime", "stops"),
    [*((tiny.RUNTIME, stops) for stops in STOPS), (tiny.FAST, [5]), (tiny.FAST, [12])],
    ids=lambda value: str(value) if isinstance(value, list) else value.precision,
)
def test_stopped_and_resumed_equals_undisturbed_to_the_bit(
    tmp_path: Path, undisturbed: Callable[..., Any], train: Train, runtime: RuntimeSettings, stops: list[int]
) -> None:
    for steps in stops:
        tiny.until_interrupted(lambda n=steps: train(tmp_path, runtime=runtime, should_stop=tiny.stops_after(n)))
        torch.manual_seed(steps)  # nothing may hang on the state of torch's own generator
    result = train(tmp_path, runtime=runtime)
    assert (measured(result), final(tmp_path)) == undisturbed(train, runtime)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "succeeded" and status["attempt"] == len(stops) + 1


@pytest.mark.parametrize("train", [tiny.run_generator, tiny.run_classifier], ids=["generator", "classifier"])
def test_broken_off_before_the_first_checkpoint_starts_anew(
    tmp_path: Path, undisturbed: Callable[..., Any], train: Train
) -> None:
    calls = iter([False, False])  # the third question finds nobody: as sudden as a kill
    with pytest.raises(StopIteration):
        train(tmp_path, should_stop=lambda: next(calls))
    assert load_newest(Store(tmp_path)) is None
    assert (measured(train(tmp_path)), final(tmp_path)) == undisturbed(train, tiny.RUNTIME)


def test_stop_is_reported_as_a_reason_and_keeps_the_step(tmp_path: Path) -> None:
    tiny.until_interrupted(lambda: tiny.run_generator(tmp_path, should_stop=tiny.stops_after(5)))
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and "stopped after 20 images" in status["reason"]
    checkpoint = load_newest(Store(tmp_path))
    assert checkpoint is not None and checkpoint.images == 20
    assert {state.step for state in checkpoint.engines.values()} == {5}


def test_finished_training_trains_nothing_and_returns_the_same(tmp_path: Path) -> None:
    result = tiny.run_generator(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert tiny.run_generator(tmp_path, should_stop=lambda: True) == result
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}


def test_broken_newest_checkpoint_costs_steps_but_no_bit(tmp_path: Path, undisturbed: Callable[..., Any]) -> None:
    tiny.until_interrupted(lambda: tiny.run_generator(tmp_path, should_stop=tiny.stops_after(7)))
    newest = max((tmp_path / "checkpoints").iterdir())
    assert int(newest.name) == 28
    weights = newest / "generator.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 16
    weights.write_bytes(data)
    result = tiny.run_generator(tmp_path)
    assert (measured(result), final(tmp_path)) == undisturbed(tiny.run_generator, tiny.RUNTIME)
    counted = [
        record["checkpoint_fallbacks_total"]
        for record in tiny.metrics(tmp_path)
        if "checkpoint_fallbacks_total" in record
    ]
    assert counted == [1]


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    tiny.until_interrupted(lambda: tiny.run_generator(tmp_path, should_stop=tiny.stops_after(1)))
    state = load_newest(Store(tmp_path))
    assert state is not None
    wider = tiny.generator_settings(network={"side": 32, "width": 6, "blocks": 2, "mix_after": "block1"})
    with pytest.raises(UserError, match=r"another model: weight 'decoder\.block2"):
        tiny.generator_training(wider, states=state.engines)


def test_validation_chooses_the_checkpoint_that_is_kept_and_the_test_never_does(tmp_path: Path) -> None:
    runtime = tiny.RUNTIME.model_copy(update={"checkpoints": 6, "keep": 1})
    tiny.run_classifier(tmp_path / "with", runtime=runtime, inputs=tiny.classifier_inputs(validation=True))
    tiny.run_classifier(tmp_path / "without", runtime=runtime)
    scores = {
        record["images"]: record["validation_accuracy_ratio"]
        for record in tiny.metrics(tmp_path / "with")
        if "validation_accuracy_ratio" in record
    }
    best = max(scores, key=lambda images: (scores[images], images))
    assert {int(p.name) for p in (tmp_path / "with" / "checkpoints").iterdir()} == {best, 48}
    assert {int(p.name) for p in (tmp_path / "without" / "checkpoints").iterdir()} == {48}


def test_stop_between_evaluations_gives_its_weights_no_old_score(tmp_path: Path) -> None:
    inputs = tiny.classifier_inputs(validation=True)
    tiny.until_interrupted(lambda: tiny.run_classifier(tmp_path, should_stop=tiny.stops_after(6), inputs=inputs))
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("manifest.json"))]
    assert [(m["images"], m["score"] is None) for m in manifests] == [(16, False), (24, True)]


# ---- losses that are not finite


@pytest.mark.parametrize(
    ("train", "settings", "term"),
    [
        (tiny.run_generator, tiny.generator_settings(optimizer={"lr": 1e30}), "loss_reconstruction"),
        (tiny.run_classifier, tiny.classifier_settings(optimizer={"lr": 1e30}), "loss_cross_entropy"),
    ],
    ids=["generator", "classifier"],
)
def test_loss_that_is_not_finite_stops_before_it_spreads(
    tmp_path: Path, train: Train, settings: Any, term: str
) -> None:
    runtime = tiny.RUNTIME.model_copy(update={"checkpoints": 12})
    with pytest.raises(NonFiniteLossError, match=rf"{term} = (nan|inf)"):
        train(tmp_path, settings=settings, runtime=runtime)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (
        status["state"] == "failed" and term in status["reason"] and "the last checkpoint is good" in status["reason"]
    )
    stops = [record for record in tiny.metrics(tmp_path) if record.get("nonfinite_stops_total")]
    last = load_newest(Store(tmp_path))
    assert last is not None and last.images >= 4
    assert [(r["nonfinite_stops_total"], r["images"]) for r in stops] == [(1, last.images)]
    before = final(tmp_path)
    with pytest.raises(NonFiniteLossError):
        train(tmp_path, settings=settings, runtime=runtime)
    assert final(tmp_path) == before


def test_step_with_a_bad_loss_changes_no_weight(tmp_path: Path) -> None:
    settings = tiny.generator_settings(optimizer={"lr": 1e30})
    training = tiny.generator_training(settings)
    runtime = tiny.RUNTIME.model_copy(update={"checkpoints": 12})
    with pytest.raises(NonFiniteLossError), tiny.context(tmp_path, "generator", runtime) as context:
        run(training, context, None)
    checkpoint = load_newest(Store(tmp_path))
    assert checkpoint is not None
    for name, engine in training.engines.items():
        assert weights_digest(engine.full_state().weights) == weights_digest(checkpoint.engines[name].weights)
