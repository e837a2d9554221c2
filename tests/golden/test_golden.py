"""Stored loss curves of tiny trainings: a change that should not alter numbers must reproduce them.

The tolerance of 1e-4 (relative; 1e-6 for scores near zero) leaves room for what another processor or build of torch
rounds otherwise, and for what twelve steps make of that: 2e-5 between the instruction sets of one processor, measured
with ONEDNN_MAX_CPU_ISA. A change of the method, of a draw or of the first weights moves the curves by percents.

An intended change renews the curves, in the same commit and with its reason there:
    HYDRAMIX_RENEW_GOLDEN=1 pytest tests/golden
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from hydramix_dist.training.classifier import ClassifierTraining
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.loop import Length, Phase, Training, run

TOLERANCE = 1e-4
CPU = torch.device("cpu")
Curve = list[dict[str, float]]


class Noted:
    """A training that notes every step's terms; it changes nothing."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.curve: Curve = []
        self.phases: Sequence[Phase] = [dataclasses.replace(p, loss=self._noting(p.loss)) for p in training.phases]

    def _noting(self, loss: Callable[[Any], Any]) -> Callable[[Any], tuple[Tensor, Mapping[str, Tensor]]]:
        def noting(batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
            total, terms = loss(batch)
            self.curve[-1].update({name: term.item() for name, term in terms.items()})
            return total, terms

        return noting

    @property
    def engines(self) -> Mapping[str, Engine]:
        return self._training.engines

    def batch(self, step: int) -> dict[str, Any]:
        self.curve.append({})
        return self._training.batch(step)

    def evaluate(self, images: int) -> Mapping[str, float]:
        return self._training.evaluate(images)


def generator() -> Training:
    """The forms of our own: three images, a discriminator without sigmoid that sees augmented images."""
    settings = tiny.generator_settings(discriminator={"width": 4, "score": "linear", "augment": True})
    return GeneratorTraining(settings, tiny.RUNTIME, tiny.shot_set(), 5, CPU, {})


def chimeramix() -> Training:
    """The released forms."""
    settings = tiny.generator_settings(
        mix={"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}},
        discriminator={"width": 4, "score": "sigmoid", "augment": False, "real_per_batch": True},
    )
    return GeneratorTraining(settings, tiny.RUNTIME, tiny.shot_set(), 5, CPU, {})


def classifier() -> Training:
    return ClassifierTraining(
        tiny.classifier_settings(optimizer={"lr": 0.005}), tiny.RUNTIME, tiny.classifier_inputs(), 5, CPU, {}
    )


def curve_of(training: Training, folder: Path) -> Curve:
    noted = Noted(training)
    torch.set_num_threads(1)
    run(noted, Length(48, 4), tiny.context(folder, "generator"), None)
    return noted.curve


@pytest.mark.parametrize("make", [generator, chimeramix, classifier], ids=lambda make: make.__name__)
def test_losses_are_the_stored_ones(tmp_path: Path, make: Callable[[], Training]) -> None:
    curve = curve_of(make(), tmp_path)
    stored = Path(__file__).with_name(f"{make.__name__}_curve.json")
    if os.environ.get("HYDRAMIX_RENEW_GOLDEN") == "1":
        stored.write_text(json.dumps(curve, indent=1) + "\n")
    expected = json.loads(stored.read_text())
    assert len(curve) == len(expected) == 12
    for step, (now, then) in enumerate(zip(curve, expected, strict=True)):
        assert now == pytest.approx(then, rel=TOLERANCE, abs=1e-6), f"step {step}"
