"""Classifier training on real and, where the arm has a generator, mixed images; scored on held-out images.

Legend: B batch, N images, C channels, H W pixels.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import Augmentation, ClassifierSettings, RuntimeSettings
from hydramix_dist.data.augmenter import Augmenter
from hydramix_dist.data.draws import Order, derived_seed, uniform
from hydramix_dist.data.held_out import HeldOut
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.mixer import Mixer
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.models.pixels import to_float
from hydramix_dist.models.placement import placed
from hydramix_dist.training.batch_norm import synchronised
from hydramix_dist.training.group import Group
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.loop import Context, Outcome, Phase
from hydramix_dist.training.scoring import predict_together
from hydramix_dist.training.session import train_in_folder

_log = logging.getLogger("hydramix")


@dataclass(frozen=True)
class ClassifierInputs:
    """What one arm trains on: real images, a mixer or none, and the images it is scored on."""

    shots: ShotSet
    augmentation: Augmentation
    mixer: Mixer | None
    test: HeldOut | None  # None while settings are searched: then the validation part alone is scored
    validation: HeldOut | None


def classifier_length(settings: ClassifierSettings) -> Length:
    """Return the length of a classifier training."""
    return Length(settings.images, settings.batch)


class ClassifierTraining:
    """One phase a step; a whole batch is either real or mixed, by one draw a step (ChimeraMix)."""

    def __init__(
        self,
        settings: ClassifierSettings,
        runtime: RuntimeSettings,
        inputs: ClassifierInputs,
        seed: int,
        group: Group,
        states: Mapping[str, EngineState],
    ) -> None:
        """Build the network from `seed`, or from `states["classifier"]` where given."""
        torch.manual_seed(seed)
        network = build_classifier(settings, len(inputs.shots.classes))
        if group.world_size > 1 and settings.batch_norm == "synchronised":
            network = synchronised(network)
        bf16 = runtime.precision == "bf16"
        network = placed(network, group.device, channels_last=runtime.channels_last, bf16=bf16)
        self.engines = {"classifier": group.engine(network, settings.optimizer, states.get("classifier"))}
        self.length = classifier_length(settings)
        self.phases = (Phase("classifier", self._lr, self._loss),)
        if runtime.compile:
            network.compile()
        self._settings, self._seed, self._group, self._inputs = settings, seed, group, inputs
        self._mixed_batches = 0
        shots = inputs.shots.to(group.device)
        self._order = Order(seed, "classifier/order", len(shots.ids))
        self._images_NCHW, self._labels_N = shots.images_NCHW, shots.labels_N
        self._augmenter = Augmenter(inputs.augmentation, derived_seed(seed, "classifier/real", 0), settings.side)

    def batch(self, piece: Piece) -> dict[str, Any]:
        """Return images [B, 3, H, W] in [-1, 1] and labels [B]; those of one step are all real or all mixed."""
        anchors_B = self._order.items(piece.numbers).to(self._group.device)
        mixer = self._inputs.mixer
        if mixer is not None and self._is_mixed(piece.step):
            self._mixed_batches += piece.index == 0
            x_BCHW = mixer.mix(anchors_B, piece.numbers, piece.step, self._settings.side)
        else:
            draws = self._augmenter.draw(piece.numbers, 1)
            x_BCHW = to_float(draws.apply(self._images_NCHW[anchors_B][:, None])[:, 0])
        return {"images": x_BCHW, "labels": self._labels_N[anchors_B], "step": piece.step, "index": piece.index}

    def inspect(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor | float]:
        """Return how many batches of this process were mixed so far."""
        return {"mixed_batches_total": float(self._mixed_batches)}

    def evaluate(self, images: int) -> Mapping[str, float]:
        """Return accuracies in [0, 1] on the test images and, where there is one, the validation part."""
        if self._settings.batch_norm == "local":
            self._share_running_statistics()
        metrics = {}
        if self._inputs.test is not None:
            metrics["test_accuracy_ratio"] = self._accuracy(self._inputs.test)
        if self._inputs.validation is not None:
            metrics["validation_accuracy_ratio"] = self._accuracy(self._inputs.validation)
        return metrics

    def predictions(self, held_out: HeldOut) -> Tensor:
        """Return the predicted class of each image, int64 [N] on the CPU."""
        return self._predict(held_out).argmax(1)

    def _accuracy(self, held_out: HeldOut) -> float:
        predicted_N = self._predict(held_out).argmax(1)
        return float((predicted_N == held_out.labels_N).double().mean())

    def _predict(self, held_out: HeldOut) -> Tensor:
        return predict_together(self.engines["classifier"].module, held_out, self._group)

    def _share_running_statistics(self) -> None:
        """Give all ranks those of rank 0, which checkpoints hold; training itself does not read them."""
        for buffer in self.engines["classifier"].module.buffers():
            buffer.copy_(self._group.gather(buffer)[0])

    def _is_mixed(self, step: int) -> bool:
        if step * self._settings.batch >= self._settings.mix_until * self._settings.images:
            return False
        return float(uniform(self._seed, "classifier/mixed", [step], 1)) < self._settings.mix_share

    def _lr(self, done: float) -> float:
        """Return the cosine rate after the share `done` of the training (ChimeraMix: to zero, no warm-up)."""
        return self._settings.optimizer.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        engine = self.engines["classifier"]
        engine.module.train()
        # Dropout draws from torch's own generator: seeded by (seed, step, piece), so that resuming repeats it.
        torch.manual_seed(derived_seed(self._seed, f"classifier/dropout-{batch['index']}", batch["step"]))
        logits = engine(batch["images"])
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

    Beside the common values, where there are test images: `test_curve` as [images seen, accuracy] pairs and
    `predictions`, the class of each test image by the weights of the last step; where there is a validation part:
    `validation_curve`. Errors as in `train_in_folder`.
    """

    def build(states: Mapping[str, EngineState]) -> ClassifierTraining:
        return ClassifierTraining(settings, context.runtime, inputs, seed, context.group, states)

    def conclude(training: ClassifierTraining, outcome: Outcome) -> dict[str, Any]:
        def curve(metric: str) -> list[list[float]]:
            return [[images, metrics[metric]] for images, metrics in outcome.evaluations]

        result: dict[str, Any] = {}
        if inputs.test is not None:
            result["test_curve"] = curve("test_accuracy_ratio")
            result["predictions"] = training.predictions(inputs.test).tolist()
        if inputs.validation is not None:
            result["validation_curve"] = curve("validation_accuracy_ratio")
        return result

    _warn_of_statistics(settings, context)
    return train_in_folder("classifier", identity, data_url, context, build, conclude)


def _warn_of_statistics(settings: ClassifierSettings, context: Context) -> None:
    """Say on rank 0 where batch norm sees something else than a whole batch, so that numbers differ."""
    group, length = context.group, classifier_length(settings)
    if group.rank == 0 and length.passes(group.world_size, context.runtime.micro_batch) > 1:
        _log.warning(
            "batch norm takes its statistics over micro-batches of about %s images, not over the whole batch of %d: "
            "other results than without runtime.micro_batch",
            context.runtime.micro_batch,
            settings.batch,
        )
