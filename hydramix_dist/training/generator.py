"""Generator training: encoder, decoder and discriminator learn from mixes of one class.

Legend: B batch, K images in a mix, N views they are made of, C channels, H W pixels, D feature channels, h w feature
cells.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.checkpoint import EngineState, weights_digest
from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import GeneratorSettings, RuntimeSettings
from hydramix_dist.data.draws import Order, integers, uniform
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.compose import Composer
from hydramix_dist.models.discriminator import Discriminator
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.pixels import to_float
from hydramix_dist.models.placement import placed
from hydramix_dist.store.run import digest
from hydramix_dist.training.diffaugment import draw_augmentation
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.group import Group
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.loop import Context, Outcome, Phase
from hydramix_dist.training.losses import adversarial_loss, discriminator_loss, perceptual_loss, reconstruction_loss
from hydramix_dist.training.session import train_in_folder


def generator_identity(fingerprint: str, ids: Sequence[str], seed: int, settings: GeneratorSettings) -> dict[str, Any]:
    """Return all that a trained generator depends on: data, subset, seed and settings (K and mask are among them)."""
    return {"data": fingerprint, "subset": list(ids), "seed": seed, "settings": dump(settings)}


def generator_key(identity: Mapping[str, Any]) -> str:
    """Return the 16 hex digits that name a generator: equal identity, equal key."""
    return digest(identity)[:16]


def generator_length(settings: GeneratorSettings) -> Length:
    """Return the length of a generator training; groups of mixes are not divided among processes."""
    return Length(settings.images, settings.batch, settings.group or 1)


class GeneratorTraining:
    """Two phases a step: the generator against a frozen discriminator, then the discriminator on the detached mixes."""

    def __init__(
        self,
        settings: GeneratorSettings,
        runtime: RuntimeSettings,
        shots: ShotSet,
        seed: int,
        group: Group,
        states: Mapping[str, EngineState],
    ) -> None:
        """Build both networks from `seed`, or from `states` ("generator", "discriminator") where given."""
        torch.manual_seed(seed)
        layout, bf16 = runtime.channels_last, runtime.precision == "bf16"
        generator = placed(Generator(settings.network), group.device, channels_last=layout, bf16=bf16)
        discriminator = placed(Discriminator(settings.discriminator), group.device, channels_last=layout, bf16=bf16)
        self.engines: dict[str, Engine] = {
            "generator": group.engine(generator, settings.optimizer, states.get("generator")),
            "discriminator": group.engine(discriminator, settings.optimizer, states.get("discriminator")),
        }
        self.length = generator_length(settings)
        self.phases = (
            Phase("generator", self._lr, self._generator_loss),
            Phase("discriminator", self._lr, self._discriminator_loss),
        )
        if runtime.compile:
            generator.compile()
            discriminator.compile()
        self._settings, self._seed = settings, seed
        self._order = Order(seed, "generator/order", len(shots.ids))
        self._composer = Composer(shots.to(group.device), settings.mix, generator.feature_side, seed, "generator")

    def batch(self, piece: Piece) -> dict[str, Any]:
        """Return views [N, 3, H, W] in [-1, 1], each mix's sources and mask, D's real images, and sample numbers."""
        numbers, step, size = piece.numbers, piece.step, self._settings.group
        if size is None:
            mix = self._composer.compose(self._order.items(numbers), numbers, step)
        else:
            mix = self._composer.compose_groups(self._order.items(numbers[::size] // size), numbers, size, step)
        x_NCHW = to_float(mix.images_NCHW)
        real = [step] if self._settings.discriminator.real_per_batch else numbers
        pick_B = integers(uniform(self._seed, "generator/real", real, 1)[:, 0], self._settings.mix.count)
        pick_B1 = pick_B.expand(len(numbers))[:, None].to(x_NCHW.device)
        real_BCHW = x_NCHW[mix.sources_BK.gather(1, pick_B1)[:, 0]]
        return {
            "views": x_NCHW,
            "sources": mix.sources_BK,
            "mask": mix.mask_BKhw,
            "real": real_BCHW,
            "numbers": numbers,
        }

    def inspect(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor | float]:
        """Return who wins, how much the mixes differ, and how evenly masks share them (our choice of measures)."""
        found: dict[str, Tensor | float] = {
            "discriminator_accuracy_real_ratio": (batch["score_real"] > 0.5).float().mean(),
            "discriminator_accuracy_mixed_ratio": (batch["score_mixed"] < 0.5).float().mean(),
            "generator_accuracy_ratio": (batch["score_taken"] > 0.5).float().mean(),
        }
        mixed_BCHW, shares_BK = batch["mixed"].float(), batch["mask"].float().mean((2, 3))
        found["mask_entropy_ratio"] = torch.special.entr(shares_BK).sum(1).mean() / math.log(shares_BK.shape[1])
        if len(mixed_BCHW) > 1:
            spread = batch["views"].float().var(0, correction=0).mean()
            found["mix_diversity_ratio"] = mixed_BCHW.var(0, correction=0).mean() / spread
        return found

    def evaluate(self, images: int) -> Mapping[str, float]:
        """Return nothing: a generator is judged by the classifier it feeds."""
        return {}

    def _lr(self, done: float) -> float:
        """Return the rate after the share `done` of the training (ChimeraMix: x0.2 at 30, 60 and 80 %)."""
        passed = sum(done >= milestone for milestone in self._settings.milestones)
        return self._settings.optimizer.lr * self._settings.decay**passed

    def _generator_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        x_NCHW = batch["views"]
        reconstructed_NCHW, mixed_BCHW = self.engines["generator"](x_NCHW, batch["sources"], batch["mask"])
        # The bare discriminator: a sharded engine takes what passes through itself for its own learning.
        score_Bhw = self.engines["discriminator"].module(self._shown(mixed_BCHW, batch["numbers"], "g"))
        batch["mixed"], batch["score_taken"] = mixed_BCHW.detach(), score_Bhw.detach()
        terms = {
            "loss_reconstruction": reconstruction_loss(reconstructed_NCHW, x_NCHW),
            "loss_perceptual": perceptual_loss(reconstructed_NCHW, x_NCHW),
            "loss_adversarial": adversarial_loss(score_Bhw),
        }
        weight = self._settings.loss
        total = (
            weight.reconstruction * terms["loss_reconstruction"]
            + weight.perceptual * terms["loss_perceptual"]
            + weight.adversarial * terms["loss_adversarial"]
        )
        return total, terms

    def _discriminator_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        shown = (
            self._shown(batch["real"], batch["numbers"], "real"),
            self._shown(batch["mixed"], batch["numbers"], "d"),
        )
        # One pass for both: instance norm has no statistics across samples.
        real_Bhw, mixed_Bhw = self.engines["discriminator"](torch.cat(shown)).chunk(2)
        batch["score_real"], batch["score_mixed"] = real_Bhw.detach(), mixed_Bhw.detach()
        total = discriminator_loss(real_Bhw, mixed_Bhw)
        return total, {
            "loss_discriminator": total,
            "score_real": real_Bhw.float().mean(),
            "score_mixed": mixed_Bhw.float().mean(),
        }

    def _shown(self, x_BCHW: Tensor, numbers: npt.NDArray[np.int64], phase: str) -> Tensor:
        """Return the images as the discriminator sees them in one phase, augmented where the settings say so."""
        if not self._settings.discriminator.augment:
            return x_BCHW
        return draw_augmentation(self._seed, f"generator/shown-{phase}", numbers).apply(x_BCHW)


def train_generator(
    shots: ShotSet, settings: GeneratorSettings, seed: int, identity: Mapping[str, Any], data_url: str, context: Context
) -> dict[str, Any]:
    """Train, or go on training, a generator in `context.store`; return its result with `weights_sha256`.

    `shots` are at the generator's side, with segments. Errors as in `train_in_folder`.
    """

    def build(states: Mapping[str, EngineState]) -> GeneratorTraining:
        return GeneratorTraining(settings, context.runtime, shots, seed, context.group, states)

    def conclude(training: GeneratorTraining, outcome: Outcome) -> dict[str, Any]:
        state = training.engines["generator"].full_state()
        return {} if state is None else {"weights_sha256": weights_digest(state.weights)}

    return train_in_folder("generator", identity, data_url, context, build, conclude)
