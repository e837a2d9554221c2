"""From anchors and sample numbers to all that a batch of mixes is made of; no network takes part yet.

Legend: B batch, K images in a mix, C channels, H W pixels, h w feature cells.
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
from hydramix_dist.mixing.masks import draw_sources, masks_from_sources
from hydramix_dist.mixing.tuples import draw_layout, draw_tuples


@dataclass(frozen=True)
class Composition:
    """A batch of mixes before the network: enough to make them again, to the bit.

    `rows_BK` are the sources' rows in the shot set, `draws` their augmentation, `layout_B` whose segments shape the
    mask, `sources_BHW` the source of each pixel, `mask_BKhw` the mask at feature cells, `images_BKCHW` (uint8) the
    augmented sources.
    """

    rows_BK: Tensor
    draws: Draws
    layout_B: Tensor
    sources_BHW: Tensor
    mask_BKhw: Tensor
    images_BKCHW: Tensor


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
        """Return the compositions of `numbers`, one for each anchor (row of the shot set), on the shot set's device."""
        rows_BK = draw_tuples(anchors_B, self._shots, self._mix, numbers, self._seed)
        draws = self._augmenter.draw(numbers, self._mix.count)
        layout_B = draw_layout(self._mix, numbers, self._seed)
        segments_BHW = None
        if self._mix.mask.kind not in ("grid", "chimera-grid"):
            if self._shots.segments_NHW is None:
                raise ValueError("this shot set was loaded without segments")
            layout_rows_B = rows_BK[torch.arange(len(numbers)), layout_B.to(rows_BK.device)]
            segments_BHW = draws.apply_to_maps(self._shots.segments_NHW[layout_rows_B], layout_B)
        sources_BHW = draw_sources(segments_BHW, self._mix, numbers, self._seed, step, self._feature_side)
        sources_BHW = sources_BHW.to(rows_BK.device)
        return Composition(
            rows_BK=rows_BK,
            draws=draws,
            layout_B=layout_B,
            sources_BHW=sources_BHW,
            mask_BKhw=masks_from_sources(sources_BHW, self._mix, self._feature_side),
            images_BKCHW=draws.apply(self._shots.images_NCHW[rows_BK]),
        )
