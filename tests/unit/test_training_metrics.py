"""What trainings record of themselves: each figure is what its definition in the table says."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from hydramix_dist.config.schema import SgdSettings
from hydramix_dist.telemetry import METRICS, Histogram, Recorder, Value
from hydramix_dist.training.engine import TorchEngine
from hydramix_dist.training.loop import NonFiniteLossError
from hydramix_dist.training.meter import Meter, Noted
from hydramix_dist.training.stopwatch import MOST, Stopwatch


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, Value], dict[str, str]]] = []

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        self.records.append((images, dict(values), dict(labels)))

    def last(self, name: str) -> Any:
        return next(values[name] for _, values, _ in reversed(self.records) if name in values)


def recorder(kept: Kept) -> Recorder:
    return Recorder([kept], run="r", role="classifier", arm="a")


# ---- the generator's measures


def inspected(**changes: Tensor) -> dict[str, float]:
    """What a generator training says of a batch of 4 mixes of 2 sources, by default all alike and undecided."""
    batch = {
        "views": torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "mask": torch.full((4, 2, 2, 2), 0.5),
        "mixed": torch.zeros(4, 3, 8, 8),
        "score_real": torch.zeros(4, 2, 2),
        "score_mixed": torch.zeros(4, 2, 2),
        "score_taken": torch.zeros(4, 2, 2),
    }
    found = tiny.generator_training().inspect(batch | changes)
    assert found.keys() <= METRICS.keys()
    return {name: float(value) for name, value in found.items()}


def test_diversity_is_0_for_one_picture_and_1_for_mixes_that_differ_as_their_sources_do() -> None:
    one = torch.rand(1, 3, 8, 8)
    assert inspected(mixed=one.expand(4, 3, 8, 8))["mix_diversity_ratio"] == pytest.approx(0, abs=1e-6)
    views = torch.randn(4, 3, 8, 8)
    assert inspected(views=views, mixed=views.flip(0))["mix_diversity_ratio"] == pytest.approx(1)
    assert inspected(views=views, mixed=views / 2 + 7)["mix_diversity_ratio"] == pytest.approx(0.25, rel=1e-4)
    assert "mix_diversity_ratio" not in inspected(mixed=one)  # of one mix there is none


def test_mask_entropy_is_0_for_one_source_and_1_for_equal_shares() -> None:
    alone = torch.zeros(4, 2, 2, 2)
    alone[:, 0] = 1
    halves = torch.zeros(4, 2, 2, 2)
    halves[:, 0, 0], halves[:, 1, 1] = 1, 1  # hard masks, but each source has half of the picture
    quarter = torch.zeros(4, 2, 2, 2)
    quarter[:, 0], quarter[:, 0, 0, 0], quarter[:, 1, 0, 0] = 1, 0, 1
    assert inspected(mask=alone)["mask_entropy_ratio"] == 0
    assert inspected(mask=halves)["mask_entropy_ratio"] == pytest.approx(1)
    assert inspected()["mask_entropy_ratio"] == pytest.approx(1)
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert inspected(mask=quarter)["mask_entropy_ratio"] == pytest.approx(expected)


def test_accuracies_count_the_scores_on_the_right_side() -> None:
    scores = torch.tensor([0.9, 0.6, 0.4, 0.1]).reshape(1, 2, 2)
    three = torch.tensor([0.9, 0.6, 0.7, 0.1]).reshape(1, 2, 2)
    found = inspected(score_real=three, score_mixed=scores, score_taken=three)
    assert found["discriminator_accuracy_real_ratio"] == 0.75
    assert found["discriminator_accuracy_mixed_ratio"] == 0.5
    assert found["generator_accuracy_ratio"] == 0.75


def test_a_generator_records_all_its_measures_and_norms(tmp_path: Path) -> None:
    tiny.run_generator(tmp_path)
    seen = {name for record in tiny.metrics(tmp_path) for name in record}
    assert seen >= inspected().keys() | {"loss_reconstruction", "loss_discriminator", "learning_rate"}
    norms = {record["engine"] for record in tiny.metrics(tmp_path) if record.get("gradient_norm", 0) > 0}
    assert norms == {"generator", "discriminator"}


# ---- gradient norms


def test_the_norm_is_that_of_all_gradients_of_the_step() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    engine = TorchEngine(module, SgdSettings(lr=0.1))
    engine.backward(engine(torch.rand(5, 3)).square().sum(), 1.0)
    gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    norm = engine.step(0.1, measured=True)
    assert norm is not None and float(norm) == pytest.approx(float(gradients.norm()), rel=1e-6)
    engine.backward(engine(torch.rand(5, 3)).sum(), 1.0)
    assert engine.step(0.1) is None


# ---- the meter


def test_every_step_is_in_the_histogram_and_what_lies_between_steps_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    kept = Kept()
    meter = Meter(recorder(kept), 100, total=200, checkpoints=4)
    for step in range(5):
        now[0] += 0.3
        meter.step(100 + 10 * (step + 1), Noted({"learning_rate": 0.1}, {"classifier": 2.0}) if step == 4 else None)
        if step == 2:
            now[0] += 60  # a checkpoint
            meter.go_on()
    steps = kept.last("step_seconds")
    assert sum(steps.counts) == 5 and steps.sum == pytest.approx(1.5)
    assert steps.counts[steps.bounds.index(0.5)] == 5
    assert kept.last("images_seen_total") == 50  # since it was gone on with
    assert kept.last("images_per_second") == pytest.approx(50 / 61.5)
    assert kept.last("checkpoint_interval_seconds") == pytest.approx(61.5)  # 50 images, with a checkpoint's minute
    assert kept.last("progress_ratio") == 0.75
    assert kept.records[-1] == (150, {"gradient_norm": 2.0}, kept.records[0][2] | {"engine": "classifier"})


def test_the_gap_is_between_the_training_batches_since_the_last_evaluation_and_held_out_images() -> None:
    kept = Kept()
    meter = Meter(recorder(kept), 0, total=4, checkpoints=1)
    meter.step(1, Noted({"train_accuracy_ratio": 0.6}, {}))
    meter.step(2, Noted({"train_accuracy_ratio": 1.0}, {}))
    meter.evaluated(2, {"test_accuracy_ratio": 0.1, "validation_accuracy_ratio": 0.5})
    assert kept.last("generalization_gap_ratio") == pytest.approx(0.3)
    meter.step(3, Noted({"train_accuracy_ratio": 0.9}, {}))
    meter.evaluated(3, {"test_accuracy_ratio": 0.4})
    assert kept.last("generalization_gap_ratio") == pytest.approx(0.5)
    meter.evaluated(4, {"test_accuracy_ratio": 0.4})  # no batch since: none is made up
    assert "generalization_gap_ratio" not in kept.records[-1][1]


def test_a_stopwatch_gives_the_mean_of_what_was_timed_since_it_was_last_asked() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    assert stopwatch.mean() is None
    for seconds in (0.01, 0.03):
        with stopwatch.measured():
            time.sleep(seconds)
    time.sleep(1.0)  # between two stretches
    found = stopwatch.mean()
    assert found is not None and 0.02 <= found < 0.3
    assert stopwatch.mean() is None
    for _ in range(3 * MOST):
        with stopwatch.measured():
            pass
    assert len(stopwatch._seconds) == MOST  # nobody asks: it must not grow for ever


def test_observations_fall_into_the_bucket_whose_bound_they_reach() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1] and histogram.sum == 14.0


# ---- whole trainings


def test_a_classifier_records_mixed_batches_checkpoints_and_its_gap(tmp_path: Path) -> None:
    tiny.run_classifier(tmp_path, inputs=tiny.classifier_inputs(validation=True))
    records = tiny.metrics(tmp_path)
    training = tiny.classifier_training()
    drawn = sum(training._is_mixed(step) for step in range(training.length.steps))
    assert 0 < drawn < training.length.steps

    def last(name: str) -> float:
        return float(next(record[name] for record in reversed(records) if name in record))

    assert last("mixed_batches_total") == drawn and last("step_seconds_count") == training.length.steps
    held_out = [record for record in records if "validation_accuracy_ratio" in record]
    assert held_out and all("generalization_gap_ratio" in record for record in held_out)
    on_disk = [path.stat().st_size for path in (tmp_path / "checkpoints").glob("*/*.safetensors")]
    assert last("checkpoint_bytes") <= sum(on_disk) and last("checkpoint_bytes") > 0
    assert last("checkpoint_last_success_timestamp_seconds") <= last("time") + 0.01
    assert last("world_size") == 1


def test_a_loss_that_is_not_finite_is_counted(tmp_path: Path) -> None:
    settings = tiny.classifier_settings(optimizer={"lr": 1e12})
    with pytest.raises(NonFiniteLossError):
        tiny.run_classifier(tmp_path, settings)
    assert [
        record["nonfinite_stops_total"] for record in tiny.metrics(tmp_path) if "nonfinite_stops_total" in record
    ] == [1]
