"""The tiny trainings whose losses are stored, and what their losses are, on one process or on several."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tiny
import torch
from torch import Tensor

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.store import Store
from hydramix_dist.telemetry import Recorder
from hydramix_dist.training.classifier import ClassifierTraining
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.group import Group
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.loop import Context, Phase, Training, run

Curve = list[dict[str, float]]
LABELS = {"run": "golden", "role": "any", "arm": "any"}


def generator(group: Group, runtime: RuntimeSettings) -> Training:
    """The forms of our own: three images, a discriminator without sigmoid that sees augmented images."""
    settings = tiny.generator_settings(discriminator={"width": 4, "score": "linear", "augment": True})
    return GeneratorTraining(settings, runtime, tiny.shot_set(), 5, group, {})


def chimeramix(group: Group, runtime: RuntimeSettings) -> Training:
    """The released forms."""
    settings = tiny.generator_settings(
        mix={"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}},
        discriminator={"width": 4, "score": "sigmoid", "augment": False, "real_per_batch": True},
    )
    return GeneratorTraining(settings, runtime, tiny.shot_set(), 5, group, {})


def classifier(group: Group, runtime: RuntimeSettings) -> Training:
    settings = tiny.classifier_settings(optimizer={"lr": 0.005})
    return ClassifierTraining(settings, runtime, tiny.classifier_inputs(), 5, group, {})


def undropped(group: Group, runtime: RuntimeSettings) -> Training:
    """A classifier without dropout, whose draws are each process's own."""
    settings = tiny.classifier_settings(optimizer={"lr": 0.005}, dropout=0.0)
    return ClassifierTraining(settings, runtime, tiny.classifier_inputs(), 5, group, {})


class Noted:
    """A training that notes every step's terms, each process its share of them; it changes nothing."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self.curve: Curve = [{} for _ in range(training.length.steps)]
        self.phases: Sequence[Phase] = [dataclasses.replace(p, loss=self._noting(p.loss)) for p in training.phases]

    def _noting(self, loss: Callable[[Any], Any]) -> Callable[[Any], tuple[Tensor, Mapping[str, Tensor]]]:
        def noting(batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
            total, terms = loss(batch)
            noted = self.curve[batch["piece"].step]
            for name, term in terms.items():
                noted[name] = noted.get(name, 0.0) + batch["piece"].share * term.item()
            return total, terms

        return noting

    @property
    def engines(self) -> Mapping[str, Engine]:
        return self._training.engines

    @property
    def length(self) -> Length:
        return self._training.length

    def batch(self, piece: Piece) -> dict[str, Any]:
        return self._training.batch(piece) | {"piece": piece}

    def inspect(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor | float]:
        return self._training.inspect(batch)

    def evaluate(self, images: int) -> Mapping[str, float]:
        return self._training.evaluate(images)


def curve_of(make: Callable[[Group, RuntimeSettings], Training], group: Group, runtime: RuntimeSettings) -> Curve:
    """Return the curve of a training, of which each process of the group has its share."""
    torch.set_num_threads(1)
    noted = Noted(make(group, runtime))
    store = Store("memory://golden")
    run(noted, Context(group, store, Recorder([], **LABELS), runtime, lambda done, total: None, tiny.never), None)
    return noted.curve


def sharded_curve_of(make: Callable[[Group, RuntimeSettings], Training], runtime: RuntimeSettings, stage: int) -> Curve:
    """Return this rank's share of the curve of a training on DeepSpeed; to be run by `ranks.run`."""
    group = DeepSpeedGroup(read_deepspeed(f"zero{stage}"), torch.device("cpu"))
    return curve_of(make, group, runtime)
