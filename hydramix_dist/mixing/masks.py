"""Which of the K images each feature cell is taken from.

A rule divides the pixels into regions and gives each region one source, or shares of all; a second step brings that to
feature cells as a mask that sums to 1 over K. The regions alone reproduce the mask, so a record keeps nothing else.

Legend: B batch, K images in a mix, H W pixels, h w feature cells, L segment labels, G cells a side of the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.config.schema import MaskKind, MixSettings
from hydramix_dist.data.augment import renumber
from hydramix_dist.data.draws import integers, uniform

Numbers = Sequence[int] | npt.NDArray[np.int64]

# A grid has no pixels of its own: for box averages it is drawn this many times finer than the feature cells (our
# choice: the ratio of pixels to cells behind the released encoder).
_GRID_FINENESS = 4


@dataclass(frozen=True)
class Regions:
    """A mask before it is brought to feature cells.

    `map_BHW` (int64) says which region a pixel belongs to; `weights_BLK` (float32, sums to 1 over K) is what each
    region takes of each source. Where that is None, `map_BHW` holds the numbers of sources.
    """

    map_BHW: Tensor
    weights_BLK: Tensor | None

    def to(self, device: torch.device) -> "Regions":
        """Return the regions on another device."""
        return Regions(self.map_BHW.to(device), None if self.weights_BLK is None else self.weights_BLK.to(device))


def draw_regions(
    segments_BHW: Tensor | None, mix: MixSettings, numbers: Numbers, seed: int, step: int, feature_side: int
) -> Regions:
    """Return regions and what they are made of; maps [B, H, W] like the segments, square for the other kinds.

    `segments_BHW` is the layout image's label map under the layout image's view (any integers >= 0; None for kinds
    without segments), `step` the number of the step, which only `chimera-grid` draws by.
    For a grid the side is that of the feature map, or 4 times as much where box averages follow.
    Raises ValueError where a segment kind gets no segments.
    """
    kind = mix.mask.kind
    if kind == "whole":
        labels_BHW, width = torch.zeros(len(numbers), feature_side, feature_side, dtype=torch.int64), 1
        n_B = torch.ones(len(numbers), dtype=torch.int64)
    elif not needs_segments(mix):
        side = feature_side * _GRID_FINENESS if mix.mask.downsample == "area" else feature_side
        labels_BHW = _grid_cells(mix, numbers, seed, step if kind == "chimera-grid" else None, side)
        width = mix.mask.grid**2
        n_B = torch.full((len(numbers),), width)
    elif segments_BHW is None:
        raise ValueError(f"mask kind '{kind}' needs the segments of the layout image")
    else:
        labels_BHW, n_B = renumber(segments_BHW)
        width = int(n_B.max())

    if mix.mask.assign == "shares":
        return Regions(labels_BHW, _shares(width, mix.count, numbers, seed).to(labels_BHW.device))
    sources_BL = _RULES[kind](n_B, width, mix.count, numbers, seed)
    return Regions(sources_BL.gather(1, labels_BHW.flatten(1)).view(labels_BHW.shape), None)


def needs_segments(mix: MixSettings) -> bool:
    """Return whether masks of these settings are made of an image's segments."""
    return "segments" in mix.mask.kind


def masks_from_regions(regions: Regions, mix: MixSettings, feature_side: int) -> Tensor:
    """Return m_BKhw, float32, from the regions of `draw_regions`.

    `nearest`: the pixel that nearest interpolation picks (ChimeraMix). `area`: mean over the cell's box (docs/method.md
    13.4, our choice).
    """
    map_BHW = regions.map_BHW
    if mix.mask.downsample == "area":
        return F.adaptive_avg_pool2d(_weights(map_BHW, regions.weights_BLK, mix.count), feature_side)
    rows = _nearest_index(map_BHW.shape[1], feature_side).to(map_BHW.device)
    columns = _nearest_index(map_BHW.shape[2], feature_side).to(map_BHW.device)
    return _weights(map_BHW[:, rows[:, None], columns], regions.weights_BLK, mix.count)


def _weights(map_Bhw: Tensor, weights_BLK: Tensor | None, count: int) -> Tensor:
    if weights_BLK is None:
        return _one_hot(map_Bhw, count)
    rows = torch.arange(len(map_Bhw), device=map_Bhw.device)[:, None, None]
    return weights_BLK[rows, map_Bhw].permute(0, 3, 1, 2)


def _shares(width: int, count: int, numbers: Numbers, seed: int) -> Tensor:
    """Return weights_BLK: for each region a point drawn uniformly from the simplex (our choice)."""
    u_BLK = uniform(seed, "mask-shares", numbers, width * count).view(len(numbers), width, count)
    # Exponential draws divided by their sum. Draws are multiples of 2^-32: half of that keeps 0 out of the logarithm.
    parts_BLK = -torch.log(u_BLK + 2.0**-33)
    return (parts_BLK / parts_BLK.sum(-1, keepdim=True)).float()


def _grid_cells(mix: MixSettings, numbers: Numbers, seed: int, step: int | None, side: int) -> Tensor:
    """Return the grid cell of each pixel [B, side, side], counted row by row, under a random offset.

    The grid is enlarged by nearest interpolation to side + p, p = side // grid, and cropped at an offset uniform in
    0..p-1 both ways (docs/method.md 3.3; ChimeraMix: 4x4 coin flips). The offset is one per sample (our choice), or
    where `step` is given one for the whole batch (ChimeraMix).
    """
    cells = mix.mask.grid
    if step is None:
        u_B2 = uniform(seed, "mask-offset", numbers, 2)
    else:
        u_B2 = uniform(seed, "mask-offset-step", [step], 2).expand(len(numbers), 2)

    margin = side // cells
    offsets_B2 = integers(u_B2, margin)
    cell_of_pixel = _nearest_index(cells, side + margin)
    pixels = torch.arange(side)
    rows_BH = cell_of_pixel[offsets_B2[:, :1] + pixels]
    columns_BW = cell_of_pixel[offsets_B2[:, 1:] + pixels]
    return rows_BH[:, :, None] * cells + columns_BW[:, None, :]


def _uniform(n_B: Tensor, width: int, count: int, numbers: Numbers, seed: int) -> Tensor:
    """Return sources_BL: each region's source uniform and independent."""
    return integers(uniform(seed, "mask-grid", numbers, width), count).to(n_B.device)


def _independent(n_B: Tensor, width: int, count: int, numbers: Numbers, seed: int) -> Tensor:
    """Return sources_BL: each segment's source uniform and independent; once again if all fell to one (13.3).

    Columns from n on belong to no segment.
    """
    first_BL, second_BL = (
        integers(uniform(seed, purpose, numbers, width).to(n_B.device), count)
        for purpose in ("mask-segments", "mask-segments-again")
    )
    foreign_BL = (first_BL != first_BL[:, :1]) & _real(n_B, width)
    one_source_B = ~foreign_BL.any(1) & (n_B >= 2)
    return torch.where(one_source_B[:, None], second_BL, first_BL)


def _contiguous(n_B: Tensor, width: int, count: int, numbers: Numbers, seed: int) -> Tensor:
    """Return sources_BL: K blocks of the label order between K-1 distinct cuts, given to a random permutation (13.3).

    A map of n < K segments is cut everywhere, and its n single segments go to n different images. Columns from n on
    belong to no segment.
    """
    permutation_BK = uniform(seed, "mask-permutation", numbers, count).to(n_B.device).argsort(dim=1, stable=True)
    keys_BL = uniform(seed, "mask-cuts", numbers, width).to(n_B.device)
    # A cut lies before a label; before label 0 none can lie, nor before a label that is not there.
    possible_BL = _real(n_B, width)
    possible_BL[:, 0] = False
    rank_BL = torch.where(possible_BL, keys_BL, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    block_BL = (possible_BL & (rank_BL < count - 1)).cumsum(1)
    return permutation_BK.gather(1, block_BL)


def _chimera(n_B: Tensor, width: int, count: int, numbers: Numbers, seed: int) -> Tensor:
    """Return sources_BL: a range of labels l..u-1 comes from image 0, the rest from image 1 (ChimeraMix).

    The map is image 1's. l is uniform in 0..max(1, n-1)-1, then u uniform in l+1..max(l+2, n)-1: the last label is
    never selected where n >= 2, and a single segment always (docs/method.md 3.2 step 4).
    """
    u_B2 = uniform(seed, "mask-range", numbers, 2).to(n_B.device)
    first_B = integers(u_B2[:, 0], (n_B - 1).clamp(min=1))
    end_B = first_B + 1 + integers(u_B2[:, 1], (n_B - 1 - first_B).clamp(min=1))
    labels = torch.arange(width, device=n_B.device)
    selected_BL = (labels >= first_B[:, None]) & (labels < end_B[:, None])
    return (~selected_BL).long()


_RULES: dict[MaskKind, Callable[[Tensor, int, int, Numbers, int], Tensor]] = {
    "whole": _uniform,
    "grid": _uniform,
    "chimera-grid": _uniform,
    "segments-independent": _independent,
    "segments-contiguous": _contiguous,
    "chimera-segments": _chimera,
}


def _real(n_B: Tensor, width: int) -> Tensor:
    """Return a bool table [B, width], true where the column is one of the sample's n labels."""
    return torch.arange(width, device=n_B.device) < n_B[:, None]


def _one_hot(sources_Bhw: Tensor, count: int) -> Tensor:
    channels_K11 = torch.arange(count, device=sources_Bhw.device)[:, None, None]
    return (sources_Bhw[:, None] == channels_K11).float()


@lru_cache(maxsize=64)
def _nearest_index(length: int, target: int) -> Tensor:
    """Return, for each of `target` positions, the one of `length` that torch's nearest interpolation picks."""
    positions = torch.arange(length, dtype=torch.float32)[None, None]
    return F.interpolate(positions, size=target, mode="nearest")[0, 0].long()
