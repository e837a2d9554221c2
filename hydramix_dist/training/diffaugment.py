"""Differentiable augmentation before the discriminator, on real and mixed images alike.

Zhao et al., "Differentiable augmentation for data-efficient GAN training", NeurIPS 2020: brightness, saturation,
contrast and translation with that work's ranges. Not in ChimeraMix; offered because its discriminator learns a
few images by heart (our choice).

Letters: B batch, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.data.draws import integers, uniform


def draw_augmentation(seed: int, purpose: str, numbers: Sequence[int] | npt.NDArray[np.int64]) -> "DiffAugment":
    """Return one draw for each of the samples with these global numbers."""
    return DiffAugment(uniform(seed, purpose, numbers, 5))


@dataclass(frozen=True)
class DiffAugment:
    """What is done to each of B images."""

    uniforms: Tensor  # [B, 5] in [0, 1): brightness, saturation, contrast, down, right

    def apply(self, x_BCHW: Tensor) -> Tensor:
        """Return the float32 images changed in colour and moved, zero (mid-grey) coming in at the border.

        Brightness adds -0.5..0.5, saturation multiplies the distance from grey by 0..2, contrast the distance from
        the image's mean by 0.5..1.5, and the image moves by up to an eighth of its side, in whole pixels. Images in
        [-1, 1] may leave that range. Gradients flow to the images.
        """
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return self._move(self._recolour(x_BCHW.float()))

    def _recolour(self, x_BCHW: Tensor) -> Tensor:
        u_3B111 = self.uniforms[:, :3].T.float().to(x_BCHW.device).view(3, -1, 1, 1, 1)
        brightness, saturation, contrast = u_3B111[0] - 0.5, u_3B111[1] * 2, u_3B111[2] + 0.5
        x_BCHW = x_BCHW + brightness
        grey_B1HW = x_BCHW.mean(dim=1, keepdim=True)
        # Saturation leaves an image's mean as it is, so the mean can be taken before it.
        mean_B111 = grey_B1HW.mean(dim=(2, 3), keepdim=True)
        return torch.lerp(mean_B111, torch.lerp(grey_B1HW, x_BCHW, saturation), contrast)

    def _move(self, x_BCHW: Tensor) -> Tensor:
        """Return the moved images: a product with one shift matrix an axis, exact, its gradient deterministic."""
        down_B1HH = _shift_matrices(self.uniforms[:, 3], x_BCHW.shape[-2], x_BCHW.device)
        right_B1WW = _shift_matrices(self.uniforms[:, 4], x_BCHW.shape[-1], x_BCHW.device)
        return down_B1HH @ x_BCHW @ right_B1WW.transpose(-1, -2)


def _shift_matrices(u_B: Tensor, side: int, device: torch.device) -> Tensor:
    """Return float32 matrices [B, 1, side, side] whose product moves a column of pixels and lets zeros in."""
    reach = side // 8
    shift_B = (integers(u_B, 2 * reach + 1) - reach).to(device)
    position = torch.arange(side, device=device)
    source_BH = position - shift_B[:, None]
    return (source_BH[:, :, None] == position).float().unsqueeze(1)
