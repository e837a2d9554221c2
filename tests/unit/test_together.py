"""Whole trainings on several processes in one run folder: stopped, resumed on others, failing, finished.

The weights are compared with those of one undisturbed process. Processes add gradients in another order, so their last
bits differ; where topology stays the same, nothing differs.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch

from hydramix_dist.checkpoint import EngineState, load_newest, weights_digest
from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.store import Store
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.loop import NonFiniteLossError

# No dropout, whose draws are each process's own; rates at which twelve steps move the weights but amplify nothing.
GENERATOR = {"optimizer": {"lr": 0.001}}
CLASSIFIER = {"dropout": 0.0, "optimizer": {"lr": 0.005}}


def train(folder: Path, kind: str, stage: int, stop_after: int | None = None, stops: int = 0, **changes: Any) -> Any:
    """Train, or go on, as one rank; return the result or what was raised. `stops` is the rank that is asked to stop."""
    group = DeepSpeedGroup(read_deepspeed(f"zero{stage}"), torch.device("cpu"))
    return trained(folder, kind, group, stop_after if group.rank == stops else None, **changes)


def trained(folder: Path, kind: str, group: Any = tiny.ALONE, stop_after: int | None = None, **changes: Any) -> Any:
    should_stop = tiny.never if stop_after is None else tiny.stops_after(stop_after)
    try:
        if kind == "generator":
            settings = tiny.generator_settings(**(GENERATOR | changes))
            return tiny.run_generator(folder, settings, should_stop=should_stop, group=group)
        classifier = tiny.classifier_settings(**(CLASSIFIER | changes))
        return tiny.run_classifier(folder, classifier, should_stop=should_stop, group=group)
    except (UserError, Interrupted, NonFiniteLossError) as error:
        return type(error).__name__, str(error)


def last(folder: Path) -> dict[str, EngineState]:
    checkpoint = load_newest(Store(folder))
    assert checkpoint is not None and checkpoint.images == 48
    return dict(checkpoint.engines)


def digests(folder: Path) -> dict[str, Any]:
    return {
        name: (weights_digest(s.weights), {moment: weights_digest(t) for moment, t in s.moments.items()})
        for name, s in last(folder).items()
    }


@pytest.fixture(scope="module", params=["generator", "classifier"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind of training, and a folder in which one process has trained it with plain torch."""
    folder = tmp_path_factory.mktemp(request.param)
    trained(folder, request.param)
    return request.param, folder


# ---- from any topology to any other: (stage, number of processes) before and after; stage None is plain torch

TOPOLOGIES = [(None, 1), *itertools.product(range(4), (1, 2, 3))]
# From and to one process, more and fewer of them, and each stage once.
SOME = {((None, 1), (2, 2)), ((3, 2), (None, 1)), ((0, 2), (3, 3)), ((1, 3), (3, 2))}
# The whole matrix is that of test_deepspeed_engine.py, where a case takes a tenth of the time; of it here each topology
# with three others before and after it.
MORE = {
    (TOPOLOGIES[i], TOPOLOGIES[(i + shift) % len(TOPOLOGIES)]) for i in range(len(TOPOLOGIES)) for shift in (1, 5, 9)
}
CASES = [
    pytest.param(before, after, marks=() if (before, after) in SOME else pytest.mark.full)
    for before, after in sorted(SOME | MORE, key=str)
]


def on(topology: tuple[int | None, int], folder: Path, kind: str, stop_after: int | None) -> list[Any]:
    stage, world_size = topology
    if stage is None:
        return [trained(folder, kind, tiny.ALONE, stop_after)]
    return ranks.run(world_size, train, folder, kind, stage, stop_after)


@pytest.mark.parametrize(("before", "after"), CASES, ids=str)
def test_a_checkpoint_resumes_on_any_stage_and_number_of_processes(
    tmp_path: Path, undisturbed: tuple[str, Path], before: Any, after: Any
) -> None:
    kind, reference = undisturbed
    assert {answer[0] for answer in on(before, tmp_path, kind, 5)} == {"Interrupted"}
    results = on(after, tmp_path, kind, None)
    assert all(result["images_seen"] == 48 for result in results)
    tiny.assert_near(last(tmp_path), last(reference))


@pytest.mark.parametrize(
    ("stage", "world_size"),
    [pytest.param(s, w, marks=() if (s, w) == (3, 2) else pytest.mark.full) for s in range(4) for w in (2, 3)],
)
def test_resumed_on_the_same_topology_no_bit_differs(
    tmp_path: Path, undisturbed: tuple[str, Path], stage: int, world_size: int
) -> None:
    kind, _ = undisturbed
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    results = ranks.run(world_size, train, whole, kind, stage)
    ranks.run(world_size, train, broken, kind, stage, 5)
    again = ranks.run(world_size, train, broken, kind, stage)
    assert digests(broken) == digests(whole)
    for key in ("test_curve", "predictions", "weights_sha256"):
        assert results[0].get(key) == again[0].get(key)


# ---- all processes do alike


def test_rank_0_alone_writes_and_all_return_the_same(tmp_path: Path) -> None:
    results = ranks.run(2, train, tmp_path, "classifier", 1)
    assert (
        results[0]["predictions"]
        == results[1]["predictions"]
        == json.loads((tmp_path / "result.json").read_text())["predictions"]
    )
    assert len(results[0]["predictions"]) == 20
    assert json.loads((tmp_path / "status.json").read_text())["attempt"] == 1
    facts = json.loads((tmp_path / "run.json").read_text())["facts"]
    assert (facts["workers"], facts["engine"]) == (2, "deepspeed-zero1")
    seen = [record["images_seen_total"] for record in tiny.metrics(tmp_path) if "images_seen_total" in record]
    assert seen == sorted(set(seen)) and seen[-1] == 48


def test_any_process_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    answers = ranks.run(2, train, tmp_path, "generator", 1, 3, 1)
    assert answers == [("Interrupted", "stopped after 12 images; the same command goes on from there")] * 2
    checkpoint = load_newest(Store(tmp_path))
    assert checkpoint is not None and checkpoint.images == 12


def test_loss_that_is_not_finite_stops_all_processes(tmp_path: Path) -> None:
    def huge() -> list[Any]:
        return ranks.run(2, exploding, tmp_path)

    answers = huge()
    assert answers[0] == answers[1] and answers[0][0] == "NonFiniteLossError"
    assert "loss_reconstruction = " in answers[0][1]


def exploding(folder: Path) -> Any:
    return train(folder, "generator", 1, optimizer={"lr": 1e30})


def test_folder_of_another_run_is_refused_by_all_processes(tmp_path: Path) -> None:
    tiny.until_interrupted(lambda: tiny.run_generator(tmp_path, should_stop=tiny.stops_after(1)))
    answers = ranks.run(2, exploding, tmp_path)
    assert answers[0] == answers[1] and answers[0][0] == "UserError" and "holds another run" in answers[0][1]


def test_statistics_of_each_process_alone_change_the_results_and_are_shared_for_evaluation(tmp_path: Path) -> None:
    results = ranks.run(2, local_statistics, tmp_path)
    assert results[0]["test_curve"] == results[1]["test_curve"]
    undisturbed = tmp_path / "undisturbed"
    trained(undisturbed, "classifier")
    with pytest.raises(AssertionError):
        tiny.assert_near(last(tmp_path), last(undisturbed))


def local_statistics(folder: Path) -> Any:
    return train(folder, "classifier", 1, batch_norm="local")
