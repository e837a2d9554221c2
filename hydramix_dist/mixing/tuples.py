"""Which images form a mix: K rows of the anchor's class, drawn per sample number.

Legend: B batch, K images in a mix, C classes, M length of the member table, N images in the shot set.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.config.schema import MixSettings
from hydramix_dist.data.draws import integers, uniform
from hydramix_dist.data.shots import ShotSet


def draw_tuples(
    anchors_B: Tensor, shots: ShotSet, mix: MixSettings, numbers: Sequence[int] | npt.NDArray[np.int64], seed: int
) -> Tensor:
    """Return row numbers idx_BK (int64) of images of the anchor's class; column 0 is the anchor.

    K different images, every ordered choice equally likely (docs/method.md 13.11, our choice). In a class of n < K
    images the first n columns are all of them and each further column is drawn uniformly from the class; so with one
    image a class all columns are that image, told apart by their views only. With `mix.self_pairs` every partner is
    drawn uniformly from the class, the anchor itself allowed (ChimeraMix). On the shot set's device.
    """
    members_CM, counts_C = shots.members
    device = members_CM.device
    anchors_B = anchors_B.to(device)
    classes_B = shots.labels_N[anchors_B]
    members_BM, n_B = members_CM[classes_B], counts_C[classes_B]
    u_BK = uniform(seed, "tuple", numbers, mix.count - 1).to(device)

    if mix.self_pairs:
        return torch.cat([anchors_B[:, None], members_BM.gather(1, integers(u_BK, n_B[:, None]))], dim=1)

    anchor_B1 = (members_BM == anchors_B[:, None]).long().argmax(1, keepdim=True)
    return members_BM.gather(1, _without_replacement(anchor_B1, n_B, u_BK))


def draw_layout(mix: MixSettings, numbers: Sequence[int] | npt.NDArray[np.int64], seed: int) -> Tensor:
    """Return layout_B (int64, 0..K-1): which of the K images lends its segments to the sample's mask.

    Uniform (docs/method.md 13.2, our choice); for `chimera-segments` always the partner, number 1 (ChimeraMix).
    """
    if mix.mask.kind == "chimera-segments":
        return torch.ones(len(numbers), dtype=torch.int64)
    return integers(uniform(seed, "layout", numbers, 1)[:, 0], mix.count)


def draw_partners(rows_QG: Tensor, count: int, numbers: Sequence[int] | npt.NDArray[np.int64], seed: int) -> Tensor:
    """Return slots_BK (int64): for each of the B = Q G mixes of Q groups, which images of its group it is made of.

    Mix number q G + s is anchored at slot s, column 0; its partners are other images of the group, every ordered choice
    equally likely, one and the same row of the shot set only where the group has no other left (our choice). So a
    mix's sources are distributed as those of `draw_tuples`; mixes of a group merely share them. Slots count through
    all groups: 0..B-1.
    """
    groups, size = rows_QG.shape
    rows_BG = rows_QG.repeat_interleave(size, dim=0)
    slot_B1 = torch.arange(size, device=rows_QG.device).repeat(groups)[:, None]
    u_BG = uniform(seed, "partner", numbers, size).to(rows_QG.device)
    taken_BK = slot_B1
    for _ in range(count - 1):
        new_slot_BG = torch.ones_like(u_BG).scatter_(1, taken_BK, 0.0)
        new_row_BG = (rows_BG[:, :, None] != rows_BG.gather(1, taken_BK)[:, None, :]).all(-1)
        next_B1 = (2 * new_row_BG + new_slot_BG + u_BG).argmax(1, keepdim=True)  # u < 1: new rows, then new slots
        taken_BK = torch.cat((taken_BK, next_B1), dim=1)
    return taken_BK + torch.arange(groups, device=rows_QG.device).repeat_interleave(size)[:, None] * size


def _without_replacement(first_B1: Tensor, n_B: Tensor, u_BK: Tensor) -> Tensor:
    """Return positions in 0..n-1, [B, 1 + columns of u], different from each other while a sample has any left.

    Each column draws a rank among the positions not yet taken; stepping over the taken ones in ascending order turns
    the rank into a position. That costs K draws a sample, however large the class is.
    """
    taken_BK = first_B1
    for k, u_B in enumerate(u_BK.unbind(1), start=1):
        position_B = integers(u_B, (n_B - k).clamp(min=1))
        for other_B in taken_BK.sort(dim=1).values.unbind(1):
            position_B = position_B + (position_B >= other_B)
        position_B = torch.where(n_B > k, position_B, integers(u_B, n_B))
        taken_BK = torch.cat([taken_BK, position_B[:, None]], dim=1)
    return taken_BK
