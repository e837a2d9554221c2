"""A frozen generator that turns rows of a shot set into mixed images.

Legend: B batch, K images in a mix, C channels, H W pixels, D feature channels, h w feature cells.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.config.schema import Augmentation, MixSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.compose import Composer
from hydramix_dist.models.generator import Generator, mix_features, sources_of
from hydramix_dist.models.pixels import to_float


class PixelMixing:
    """A generator without a network: features are pixels, so D is 3 and h, w the image side (ChimeraMix: "direct")."""

    def __init__(self, side: int) -> None:
        """Take the side of the images, pixels."""
        self.feature_side = side

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Return images in [-1, 1] as they are."""
        return x_BCHW

    def decode(self, f_BDhw: Tensor) -> Tensor:
        """Return mixes [B, 3, H, W] in [-1, 1], the weighted means of their sources, as they are."""
        return f_BDhw


class Mixer:
    """Mixes images of one class; the generator runs without gradients and decodes nothing but the mixes."""

    def __init__(
        self,
        generator: Generator | PixelMixing,
        shots: ShotSet,
        mix: MixSettings,
        seed: int,
        augmentation: Augmentation,
        *,
        bf16: bool,
    ) -> None:
        """Take a trained generator and a shot set at its side, both on one device."""
        self._generator = generator
        if isinstance(generator, Generator):
            generator.eval().requires_grad_(False)
        self._bf16 = bf16
        self._composer = Composer(shots, mix, generator.feature_side, seed, "mixer", augmentation)

    @torch.no_grad()
    def mix(self, anchors_B: Tensor, numbers: npt.NDArray[np.int64], step: int, side: int) -> Tensor:
        """Return mixes [B, 3, side, side], float32 in [-1, 1], of the anchors' classes."""
        composition = self._composer.compose(anchors_B, numbers, step)
        x_NCHW = to_float(composition.images_NCHW)
        with torch.autocast(x_NCHW.device.type, torch.bfloat16, enabled=self._bf16):
            f_NDhw = self._generator.encode(x_NCHW)
            f_BDhw = mix_features(sources_of(f_NDhw, composition.sources_BK), composition.mask_BKhw)
            mixed_BCHW = self._generator.decode(f_BDhw)
        mixed_BCHW = mixed_BCHW.float()
        if mixed_BCHW.shape[-1] == side:
            return mixed_BCHW
        # ChimeraMix: bilinear with aligned corners between the generator's side and the classifier's.
        return F.interpolate(mixed_BCHW, size=side, mode="bilinear", align_corners=True)
