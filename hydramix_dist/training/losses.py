"""The losses of generator and discriminator, computed in 32 bits whatever the networks' precision.

Letters: B batch, K images in a mix, N = B K reconstructed images, C channels, H W pixels, h w patches.
"""

from functools import lru_cache

import torch
from torch import Tensor

from hydramix_dist.errors import UserError

_LEVELS = 3


def reconstruction_loss(reconstructed_NCHW: Tensor, x_NCHW: Tensor) -> Tensor:
    """Return (2 / K) times the sum over k of the mean square error of image k of a mix, images in [-1, 1].

    At K=2 this is ChimeraMix's sum over its two images; at another K it stays on that scale (our choice). As every
    image has equally many pixels, it is twice the mean over all.
    """
    return 2 * (reconstructed_NCHW.float() - x_NCHW.float()).square().mean()


def perceptual_loss(reconstructed_NCHW: Tensor, x_NCHW: Tensor) -> Tensor:
    """Return (2 / K) times the sum over k of the Laplacian-pyramid loss of image k of a mix, as `reconstruction_loss`.

    UserError: as `laplacian_loss`.
    """
    return 2 * laplacian_loss(reconstructed_NCHW, x_NCHW)


def adversarial_loss(score_Bhw: Tensor) -> Tensor:
    """Return the generator's mean square distance of D's scores of the mixes from 1, the score of real images."""
    return (score_Bhw.float() - 1).square().mean()


def discriminator_loss(real_Bhw: Tensor, mixed_Bhw: Tensor) -> Tensor:
    """Return the mean squares of D's scores, real ones from 1 and mixed ones from 0, summed (ChimeraMix: no half)."""
    return (real_Bhw.float() - 1).square().mean() + mixed_Bhw.float().square().mean()


def laplacian_loss(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return the L1 distance of two batches' Laplacian pyramids (ChimeraMix's perceptual loss: no pretrained network).

    The sum over three levels of the mean absolute difference of their details. The low-pass rest is not compared, so
    a constant offset costs nothing. Binomial 5x5 kernel, mirrored border. UserError: sides under 16 or not divisible
    by 8.
    """
    height, width = a_BCHW.shape[-2:]
    if height % 2**_LEVELS or width % 2**_LEVELS or min(height, width) < 16:
        raise UserError(
            f"the perceptual loss cannot take images of {height}x{width} pixels: "
            f"both sides must be divisible by {2**_LEVELS} and at least 16"
        )
    # A pyramid is linear: the difference of two is that of one difference. And as the kernel is separable, going
    # a level down or up is one small matrix an axis, some ten times faster on a CPU than depthwise convolutions.
    with torch.autocast(a_BCHW.device.type, enabled=False):
        level_BCHW = (a_BCHW.float() - b_BCHW.float()).contiguous()
        loss = level_BCHW.new_zeros(())
        for _ in range(_LEVELS):
            halve_y, double_y = _resampling(level_BCHW.shape[-2], level_BCHW.device)
            halve_x, double_x = _resampling(level_BCHW.shape[-1], level_BCHW.device)
            smaller_BChw = halve_y @ (level_BCHW @ halve_x.T)
            detail_BCHW = level_BCHW - double_y @ (smaller_BChw @ double_x.T)
            loss = loss + detail_BCHW.abs().mean()
            level_BCHW = smaller_BChw
    return loss


@lru_cache(maxsize=64)
def _resampling(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices that halve and double one axis, shapes [side / 2, side] and [side, side / 2].

    Halving blurs and keeps every second pixel; doubling inserts zeros and blurs with twice the kernel.
    """
    with torch.inference_mode(False):  # a cached tensor must serve training too
        position = torch.arange(side)
        blur = torch.zeros(side, side)
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            mirrored = (position + offset).abs()
            mirrored = side - 1 - (side - 1 - mirrored).abs()
            blur[position, mirrored] += weight / 16
        return blur[::2].contiguous().to(device), (2 * blur[:, ::2]).contiguous().to(device)
