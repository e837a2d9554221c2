"""The generator's training step as ChimeraMix's released code takes it, on our modules: what ours is compared with.

In a step the released code encodes both images and decodes nine times (three calls, each giving the mix and both
reconstructions), of which three serve a loss. Its discriminator step encodes again and decodes three times, under a
fresh mask. Both images of every sample are segmented after their augmentation, one of the two maps is used. In the
released wiring (`decoder_blocks: skip`) the decoder computes its residual blocks and drops the result.

Modules, losses, optimizers, augmentation and mask rule are the package's, so that nothing but the procedure differs.

Legend: B batch, K = 2 images a and b of a mix, N = 2 B images, C channels, H W pixels, D feature channels, h w cells.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import felzenszwalb
from torch import Tensor, nn

from hydramix_dist.config.schema import GeneratorSettings, RuntimeSettings, SegmentSettings
from hydramix_dist.data.augmenter import Augmenter
from hydramix_dist.data.draws import Order, integers, uniform
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.masks import draw_regions, masks_from_regions
from hydramix_dist.mixing.tuples import draw_tuples
from hydramix_dist.models.discriminator import Discriminator
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.pixels import to_float
from hydramix_dist.models.placement import placed
from hydramix_dist.training.engine import Engine, TorchEngine
from hydramix_dist.training.length import Length, Piece
from hydramix_dist.training.loop import Phase
from hydramix_dist.training.losses import adversarial_loss, discriminator_loss, laplacian_loss


class ReleasedTraining:
    """The released procedure on our modules (ChimeraMix, train_generator.py; docs/method.md sections 2 to 6)."""

    def __init__(
        self, settings: GeneratorSettings, runtime: RuntimeSettings, shots: ShotSet, seed: int, device: torch.device
    ) -> None:
        """Build the networks of `settings`; in the released wiring also the blocks whose result is dropped."""
        torch.manual_seed(seed)
        generator = placed(Generator(settings.network), device, channels_last=runtime.channels_last)
        discriminator = placed(Discriminator(settings.discriminator), device, channels_last=runtime.channels_last)
        self.engines: Mapping[str, Engine] = {
            "generator": TorchEngine(generator, settings.optimizer),
            "discriminator": TorchEngine(discriminator, settings.optimizer),
        }
        self.phases = (
            Phase("generator", lambda done: settings.optimizer.lr, self._generator_loss),
            Phase("discriminator", lambda done: settings.optimizer.lr, self._discriminator_loss),
        )
        self._generator, self._discriminator = generator, discriminator
        self._dropped = placed(_dropped_blocks(settings), device, channels_last=runtime.channels_last)
        self._settings, self._seed, self._device = settings, seed, device
        self._shots, self._order = shots.to(device), Order(seed, "released/order", len(shots.ids))
        self._augmenter = Augmenter("basic", seed, settings.network.side)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16")
        self.length = Length(settings.images, settings.batch)

    def batch(self, piece: Piece) -> dict[str, Any]:
        """Return sources [B, 2, 3, H, W] in [-1, 1], a mask for each phase, and the real images D is shown."""
        numbers, step, mix = piece.numbers, piece.step, self._settings.mix
        rows_BK = draw_tuples(self._order.items(numbers), self._shots, mix, numbers, self._seed)
        x_BKCHW = to_float(self._augmenter.draw(numbers, 2).apply(self._shots.images_NCHW[rows_BK]))
        segments_BKHW = segment_augmented(x_BKCHW.flatten(0, 1), self._settings.segments).unflatten(0, (-1, 2))
        masks = []
        for seed in (self._seed, self._seed + 1):  # the discriminator's step draws its own
            regions = draw_regions(segments_BKHW[:, 1], mix, numbers, seed, step, self._generator.feature_side)
            masks.append(masks_from_regions(regions, mix, self._generator.feature_side).to(self._device))
        real = int(integers(uniform(self._seed, "released/real", [step], 1), 2))
        return {"sources": x_BKCHW, "mask": masks[0], "mask_again": masks[1], "real": x_BKCHW[:, real]}

    def _generator_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        a_BCHW, b_BCHW = batch["sources"].unbind(1)
        only_a_BKhw = torch.zeros_like(batch["mask"])
        only_a_BKhw[:, 0] = 1
        with self._autocast:
            f_BDhw, g_BDhw = self._generator.encode(a_BCHW), self._generator.encode(b_BCHW)
            a_again_BCHW, _, _ = self._mix_and_decode(f_BDhw, g_BDhw, only_a_BKhw)
            b_again_BCHW, _, _ = self._mix_and_decode(f_BDhw, g_BDhw, 1 - only_a_BKhw)
            mixed_BCHW, _, _ = self._mix_and_decode(f_BDhw, g_BDhw, batch["mask"])
            score_Bhw = self._discriminator(mixed_BCHW)
        weight = self._settings.loss
        total = (
            weight.reconstruction * (F.mse_loss(a_again_BCHW, a_BCHW) + F.mse_loss(b_again_BCHW, b_BCHW))
            + weight.perceptual * (laplacian_loss(a_again_BCHW, a_BCHW) + laplacian_loss(b_again_BCHW, b_BCHW))
            + weight.adversarial * adversarial_loss(score_Bhw)
        )
        return total, {}

    def _discriminator_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        a_BCHW, b_BCHW = batch["sources"].unbind(1)
        with self._autocast:
            f_BDhw, g_BDhw = self._generator.encode(a_BCHW), self._generator.encode(b_BCHW)
            mixed_BCHW, _, _ = self._mix_and_decode(f_BDhw, g_BDhw, batch["mask_again"])
            real_Bhw = self._discriminator(batch["real"])
            mixed_Bhw = self._discriminator(mixed_BCHW.detach())
        return discriminator_loss(real_Bhw, mixed_Bhw), {}

    def _mix_and_decode(self, f_BDhw: Tensor, g_BDhw: Tensor, m_BKhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mix and both reconstructions, as each call of the released code does."""
        mixed_BDhw = (f_BDhw * m_BKhw[:, :1] + g_BDhw * m_BKhw[:, 1:]).to(f_BDhw.dtype)
        return self._decode(mixed_BDhw), self._decode(f_BDhw), self._decode(g_BDhw)

    def _decode(self, f_BDhw: Tensor) -> Tensor:
        self._dropped(f_BDhw)
        return self._generator.decode(f_BDhw)


def segment_augmented(x_NCHW: Tensor, settings: SegmentSettings) -> Tensor:
    """Return label maps [N, H, W] of images in [-1, 1], on the CPU, segmented one by one."""
    images = x_NCHW.permute(0, 2, 3, 1).cpu().numpy()
    maps = [felzenszwalb(x, settings.scale, settings.sigma, settings.min_size, channel_axis=-1) for x in images]
    return torch.from_numpy(np.stack(maps))


def _dropped_blocks(settings: GeneratorSettings) -> nn.Sequential:
    """Return the blocks that the released decoder computes in vain: none where ours are live."""
    if settings.network.decoder_blocks == "apply":
        return nn.Sequential()
    decoder = Generator(settings.network.model_copy(update={"decoder_blocks": "apply"})).decoder
    return nn.Sequential(*(layer for name, layer in decoder.named_children() if name.startswith("block")))
