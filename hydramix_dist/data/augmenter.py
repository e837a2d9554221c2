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

    def apply(self, images: Tensor) -> Tensor:
        """Return the augmented images [..., C, H, W], uint8; the draws belong to the leading dimensions in order."""
        if self.trivial is not None:
            images = apply_trivial(images, self.trivial)
        return apply_views(images, self.views)

    def apply_to_maps(self, maps: Tensor) -> Tensor:
        """Return label maps [..., H, W] moved as `apply` moves the images they belong to."""
        if self.trivial is not None:
            maps = apply_trivial_to_maps(maps, self.trivial)
        return apply_views_to_maps(maps, self.views)

    def at(self, index: Tensor) -> "Draws":
        """Return the draws of these images, shaped like the index into the flattened draws."""
        return Draws(self.views.at(index), None if self.trivial is None else self.trivial.at(index))


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
