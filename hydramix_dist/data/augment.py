"""Crop and flip as index arithmetic: the same views for images and label maps, drawn per (sample, slot).

Legend: B batch, K slots (images of one mix), C channels, H W pixels, L labels; "..." stands for B or B, K.

The basic augmentation of the method (docs/method.md 6.1, "ChimeraMix"): a crop at full side from the image padded by
reflection with side / 8 pixels, then a horizontal flip with probability 1/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.data.draws import integers, uniform


@dataclass(frozen=True)
class Views:
    """Where each crop lies and whether it is mirrored; three tensors of one shape, [B, K] as drawn.

    `oy` and `ox` (int64) are the pixels by which the crop window lies below and right of the image itself, from
    -side // 8 to side // 8; `flip` (bool) mirrors the crop left to right. All zero is the image unchanged.
    """

    oy: Tensor
    ox: Tensor
    flip: Tensor

    def at(self, index: Tensor) -> "Views":
        """Return the views of these images, shaped like the index into the flattened views."""
        return Views(*(field.flatten()[index.to(field.device)] for field in (self.oy, self.ox, self.flip)))


def draw_views(seed: int, purpose: str, numbers: Sequence[int] | npt.NDArray[np.int64], slots: int, side: int) -> Views:
    """Return views [B, slots] for images of `side` pixels, independent for each (sample number, slot).

    A slot's view does not depend on how many slots are drawn.
    """
    u_BK3 = uniform(seed, purpose, numbers, 3 * slots).view(len(numbers), slots, 3)
    pad = side // 8
    offsets_BK2 = integers(u_BK3[..., :2], 2 * pad + 1) - pad
    return Views(oy=offsets_BK2[..., 0], ox=offsets_BK2[..., 1], flip=u_BK3[..., 2] < 0.5)


def apply_views(images: Tensor, views: Views) -> Tensor:
    """Return the views of images [..., C, H, W], same shape and dtype.

    The views' elements belong to the leading dimensions in order, so [B, 1] views serve images [B, C, H, W] too.
    Reflection is done on the indices, so no padded copy is made. On the images' device.
    """
    *leading, channels, height, width = images.shape
    oy, ox, flip = (field.reshape(-1, 1).to(images.device) for field in (views.oy, views.ox, views.flip))
    rows_BH = _reflect(torch.arange(height, device=images.device) + oy, height)
    columns = torch.arange(width, device=images.device)
    columns_BW = _reflect(torch.where(flip, width - 1 - columns, columns) + ox, width)
    flat_B1P = (rows_BH[:, :, None] * width + columns_BW[:, None, :]).view(-1, 1, height * width)
    pixels_BCP = images.reshape(-1, channels, height * width)
    return pixels_BCP.gather(2, flat_B1P.expand(-1, channels, -1)).view(*leading, channels, height, width)


def apply_views_to_maps(maps: Tensor, views: Views) -> Tensor:
    """Return the views of label maps [..., H, W], cut exactly as `apply_views` cuts the images they belong to."""
    return apply_views(maps.unsqueeze(-3), views).squeeze(-3)


def renumber(segments_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps with the labels present in each renumbered 0..n-1 in order (int64), and n as n_B (int64).

    Labels are non-negative integers of any integer dtype.
    """
    labels_BP = segments_BHW.flatten(1).long()
    present_BL = labels_BP.new_zeros(len(labels_BP), int(labels_BP.max()) + 1)
    present_BL.scatter_(1, labels_BP, 1)
    rank_BL = present_BL.cumsum(1)
    return (rank_BL - 1).gather(1, labels_BP).view(segments_BHW.shape), rank_BL[:, -1]


def _reflect(index: Tensor, length: int) -> Tensor:
    """Return indices in 0..length-1, reflected at both borders without repeating the border pixel."""
    last = length - 1
    return last - (last - index.abs()).abs()
