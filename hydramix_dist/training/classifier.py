"""Classifier training on real and, where the arm has a generator, mixed images; scored on held-out images.

Legend: B batch, N images, C channels, H W pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import Augmentation, ClassifierSettings, RuntimeSettings
from hydramix_dist.data.augmenter import Augmenter
from hydramix_dist.data.draws import Order, derived_seed, uniform
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.mixer import Mixer
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.models.pixels import to_float
from hydramix_dist.models.placement import placed
from hydramix_dist.training.engine import Engine, TorchEngine
from hydramix_dist.training.loop import Context, Length, Outcome, Phase, autocast
from hydramix_dist.training.scoring import predict
from hydramix_dist.training.session import train_in_folder


@dataclass(frozen=True)
class HeldOut:
    """Images never trained on, uint8 [N, 3, H, W], with labels int64 [N]."""

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True)
class ClassifierInputs:
    """What one arm trains on: real images, a mixer or none, and the images it is scored on."""

    shots: ShotSet
    augmentation: Augmentation
    mixer: Mixer | None
    test: HeldOut
    validation: HeldOut | None


class ClassifierTraining:
    """One phase a step; a whole batch is either real or mixed, by one draw a step (ChimeraMix)."""

    def __init__(
        self,
        settings: ClassifierSettings,
        runtime: RuntimeSettings,
        inputs: ClassifierInputs,
        seed: int,
        device: torch.device,
        states: Mapping[str, EngineState],
    ) -> None:
        """Build the network from `seed`, or from `states["classifier"]` where given."""
        torch.manual_seed(seed)
        network = placed(
            build_classifier(settings, len(inputs.shots.classes)), device, channels_last=runtime.channels_last
        )
        engine: Engine = TorchEngine(network, settings.optimizer, states.get("classifier"))
        self.engines = {"classifier": engine}
        self.phases = (Phase("classifier", self._lr, self._loss),)
        if runtime.compile:
            network.compile()
        self._network, self._settings, self._runtime = network, settings, runtime
        self._seed, self._device, self._inputs = seed, device, inputs
        shots = inputs.shots.to(device)
        self._order = Order(seed, "classifier/order", len(shots.ids))
        self._images_NCHW, self._labels_N = shots.images_NCHW, shots.labels_N
        self._augmenter = Augmenter(inputs.augmentation, derived_seed(seed, "classifier/real", 0), settings.side)

    def batch(self, step: int) -> dict[str, Any]:
        """Return images [B, 3, H, W] in [-1, 1] and labels [B] of a step, all real or all mixed."""
        numbers = np.arange(step * self._settings.batch, (step + 1) * self._settings.batch)
        anchors_B = self._order.items(numbers)
        anchors_B = anchors_B.to(self._device)
        mixer = self._inputs.mixer
        if mixer is not None and self._is_mixed(step):
            x_BCHW = mixer.mix(anchors_B, numbers, step, self._settings.side)
        else:
            draws = self._augmenter.draw(numbers, 1)
            x_BCHW = to_float(draws.apply(self._images_NCHW[anchors_B][:, None])[:, 0])
        return {"images": x_BCHW, "labels": self._labels_N[anchors_B], "step": step}

    def evaluate(self, images: int) -> Mapping[str, float]:
        """Return accuracies in [0, 1] on the test images and, where there is one, the validation part."""
        metrics = {"test_accuracy_ratio": self._accuracy(self._inputs.test)}
        if self._inputs.validation is not None:
            metrics["validation_accuracy_ratio"] = self._accuracy(self._inputs.validation)
        return metrics

    def test_predictions(self) -> Tensor:
        """Return the predicted class of each test image, int64 [N] on the CPU."""
        return self._predict(self._inputs.test).argmax(1)

    def _accuracy(self, held_out: HeldOut) -> float:
        predicted_N = self._predict(held_out).argmax(1)
        return float((predicted_N == held_out.labels_N).double().mean())

    def _predict(self, held_out: HeldOut) -> Tensor:
        return predict(self._network, held_out.images_NCHW, self._runtime, self._device)

    def _is_mixed(self, step: int) -> bool:
        if step * self._settings.batch >= self._settings.mix_until * self._settings.images:
            return False
        return float(uniform(self._seed, "classifier/mixed", [step], 1)) < self._settings.mix_share

    def _lr(self, done: float) -> float:
        """Return the cosine rate after the share `done` of the training (ChimeraMix: to zero, no warm-up)."""
        return self._settings.optimizer.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        self._network.train()
        # Dropout draws from torch's own generator: seeded by (seed, step, rank), so that resuming repeats it.
        rank = self.engines["classifier"].rank
        torch.manual_seed(derived_seed(self._seed, f"classifier/dropout-{rank}", batch["step"]))
        with autocast(self._runtime, self._device):
            logits = self._network(batch["images"])
        loss = F.cross_entropy(logits.float(), batch["labels"])
        correct = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        return loss, {"loss_cross_entropy": loss, "train_accuracy_ratio": correct}


def train_classifier(
    inputs: ClassifierInputs,
    settings: ClassifierSettings,
    seed: int,
    identity: Mapping[str, Any],
    data_url: str,
    context: Context,
) -> dict[str, Any]:
    """Train, or go on training, a classifier in `context.store`; return its result.

    Beside the common values: `test_curve` as [images seen, accuracy] pairs and `predictions`, the class of each test
    image by the weights of the last step. Errors as in `train_in_folder`.
    """

    def build(device: torch.device, states: Mapping[str, EngineState]) -> ClassifierTraining:
        return ClassifierTraining(settings, context.runtime, inputs, seed, device, states)

    def conclude(training: ClassifierTraining, outcome: Outcome) -> dict[str, Any]:
        curve = [[images, metrics["test_accuracy_ratio"]] for images, metrics in outcome.evaluations]
        return {"test_curve": curve, "predictions": training.test_predictions().tolist()}

    length = Length(settings.images, settings.batch)
    return train_in_folder("classifier", identity, data_url, context, length, build, conclude)
