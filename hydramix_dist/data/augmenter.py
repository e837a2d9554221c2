"""The augmentation of an arm: views and, where asked for, TrivialAugment, for images and their label maps alike.

Legend: B batch, K slots (images of one mix), C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hydramix_dist.config.schema import Augmentation
from hydramix_dist.data.augment import Views, apply_views, apply_views_to_maps, draw_views
from hydramix_dist.data.trivial_augment import TrivialDraws, apply_trivial, apply_trivial_to_maps, draw_trivial


@dataclass(frozen=True)
class Draws:
    """What happens to each of the images [B, K]: TrivialAugment first (or not at all), then crop and flip."""

    views: Views
    trivial: TrivialDraws | None

    def apply(self, images_BKCHW: Tensor) -> Tensor:
        """Return the augmented images, uint8, same shape."""
        if self.trivial is not None:
            images_BKCHW = apply_trivial(images_BKCHW, self.trivial)
        return apply_views(images_BKCHW, self.views)

    def apply_to_maps(self, maps_BHW: Tensor, slots_B: Tensor) -> Tensor:
        """Return the label maps moved as the image in slot `slots_B` of their sample is moved."""
        if self.trivial is not None:
            maps_BHW = apply_trivial_to_maps(maps_BHW, self.trivial.pick(slots_B))
        return apply_views_to_maps(maps_BHW, self.views.pick(slots_B))

    def at(self, index: int) -> "Draws":
        """Return the draws [1, K] of one sample."""
        views = Views(*(f[index : index + 1] for f in (self.views.oy, self.views.ox, self.views.flip)))
        if self.trivial is None:
            return Draws(views, None)
        fields = (self.trivial.operation, self.trivial.level, self.trivial.negative)
        return Draws(views, TrivialDraws(*(f[index : index + 1] for f in fields)))


@dataclass(frozen=True)
class Augmenter:
    """Draws augmentations by (seed, sample number, slot)."""

    augmentation: Augmentation
    seed: int
    side: int

    def draw(self, numbers: Sequence[int] | npt.NDArray[np.int64], slots: int) -> Draws:
        """Return independent draws [len(numbers), slots]."""
        trivial = draw_trivial(self.seed, "trivial", numbers, slots) if self.augmentation == "trivial" else None
        return Draws(draw_views(self.seed, "views", numbers, slots, self.side), trivial)
