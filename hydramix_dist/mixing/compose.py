"""Sources, augmentation and masks of a batch of mixes, drawn in one place for training, records and sheets.

Legend: B batch, K images in a mix, N different views among the B K sources, Q groups, G images of a group, C channels,
H W pixels, h w feature cells, L regions of a mask.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.config.schema import Augmentation, MixSettings
from hydramix_dist.data.augmenter import Augmenter, Draws
from hydramix_dist.data.draws import derived_seed
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.masks import Regions, draw_regions, masks_from_regions, needs_segments
from hydramix_dist.mixing.tuples import draw_layout, draw_partners, draw_tuples


@dataclass(frozen=True)
class Composition:
    """A batch of mixes before the network: enough to make them again, to the bit.

    `rows_N` are the views' rows in the shot set, `draws` (over N) their augmentation, `images_NCHW` (uint8) the views
    themselves. `sources_BK` says which views a mix is made of, `layout_B` whose segments (0..K-1) shape its mask,
    `regions` what the mask is made of, `mask_BKhw` the mask at feature cells.
    """

    rows_N: Tensor
    draws: Draws
    images_NCHW: Tensor
    sources_BK: Tensor
    layout_B: Tensor
    regions: Regions
    mask_BKhw: Tensor


class Composer:
    """Composes mixes out of one shot set; every draw is keyed by (seed, stage, sample number)."""

    def __init__(
        self,
        shots: ShotSet,
        mix: MixSettings,
        feature_side: int,
        seed: int,
        stage: str,
        augmentation: Augmentation = "basic",
    ) -> None:
        """Bind to a shot set at the generator's side. `stage` keeps the draws of two users of one seed apart."""
        self._shots, self._mix, self._feature_side = shots, mix, feature_side
        self._seed = derived_seed(seed, f"{stage}/compose", 0)
        self._augmenter = Augmenter(augmentation, self._seed, shots.images_NCHW.shape[-1])

    def compose(self, anchors_B: Tensor, numbers: npt.NDArray[np.int64], step: int) -> Composition:
        """Return the compositions of `numbers`, one for each anchor (row of the shot set), on the shot set's device.

        Each mix has views of its own: N = B K.
        """
        rows_BK = draw_tuples(anchors_B, self._shots, self._mix, numbers, self._seed)
        sources_BK = torch.arange(rows_BK.numel(), device=rows_BK.device).view(rows_BK.shape)
        draws = self._augmenter.draw(numbers, self._mix.count)
        return self._finish(rows_BK.flatten(), draws, sources_BK, numbers, step)

    def compose_groups(self, leads_Q: Tensor, numbers: npt.NDArray[np.int64], size: int, step: int) -> Composition:
        """Return the compositions of `numbers`, whole groups of `size` mixes, on the shot set's device.

        A group is `size` images of its lead's class, drawn like a tuple; each image is the anchor of one mix and its
        view serves all mixes of the group: N = B (our choice).
        """
        group = self._mix.model_copy(update={"count": size})
        rows_QG = draw_tuples(leads_Q, self._shots, group, numbers[::size] // size, self._seed)
        sources_BK = draw_partners(rows_QG, self._mix.count, numbers, self._seed)
        return self._finish(rows_QG.flatten(), self._augmenter.draw(numbers, 1), sources_BK, numbers, step)

    def _finish(
        self, rows_N: Tensor, draws: Draws, sources_BK: Tensor, numbers: npt.NDArray[np.int64], step: int
    ) -> Composition:
        layout_B = draw_layout(self._mix, numbers, self._seed).to(rows_N.device)
        segments_BHW = None
        if needs_segments(self._mix):
            if self._shots.segments_NHW is None:
                raise ValueError("this shot set was loaded without segments")
            at_B = sources_BK.gather(1, layout_B[:, None])[:, 0]
            segments_BHW = draws.at(at_B).apply_to_maps(self._shots.segments_NHW[rows_N[at_B]])
        regions = draw_regions(segments_BHW, self._mix, numbers, self._seed, step, self._feature_side)
        regions = regions.to(rows_N.device)
        return Composition(
            rows_N=rows_N,
            draws=draws,
            images_NCHW=draws.apply(self._shots.images_NCHW[rows_N]),
            sources_BK=sources_BK,
            layout_B=layout_B,
            regions=regions,
            mask_BKhw=masks_from_regions(regions, self._mix, self._feature_side),
        )
