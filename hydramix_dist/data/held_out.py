"""Images that are only scored: held in memory where they are few, else streamed anew for each evaluation.

Legend: N images, B images of a batch, C channels, H W pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hydramix_dist.data.dataset import Dataset

BATCH = 250  # images scored at a time; the same for all, so that a batch's rounding is
_HELD_BYTES = 256 * 2**20  # of uint8 images kept: 87,381 at 32 px, 5,461 at 128 px


@dataclass(frozen=True)
class Streamed:
    """Images of a split, by ascending rows of it, at one side."""

    dataset: Dataset
    split: str
    rows: tuple[int, ...]
    side: int


@dataclass(frozen=True)
class HeldOut:
    """Images never trained on, uint8 [N, 3, H, W] in memory or where to stream them from, with labels int64 [N]."""

    images: Tensor | Streamed
    labels_N: Tensor

    def batches(self, positions_n: Tensor) -> Iterator[Tensor]:
        """Yield the images at ascending positions, uint8 [B, 3, H, W], B being BATCH but for the last one."""
        if isinstance(self.images, Tensor):
            yield from (self.images[chunk] for chunk in positions_n.split(BATCH))
            return
        rows = np.asarray(self.images.rows, np.int64)[positions_n.numpy()]
        blocks = self.images.dataset.stream(self.images.split, rows, self.images.side)
        # In memory as held ones are: other strides are other convolutions, and other last bits.
        yield from _regrouped(images.contiguous() for _, images in blocks)


def load_held_out(dataset: Dataset, split: str, rows: Sequence[int], side: int) -> HeldOut:
    """Return images of a split by ascending rows: in memory up to 256 MiB, beyond it streamed."""
    labels_N = torch.from_numpy(dataset.labels(split)[list(rows)])
    if len(rows) * 3 * side * side <= _HELD_BYTES:
        return HeldOut(dataset.images(split, rows, side), labels_N)
    return HeldOut(Streamed(dataset, split, tuple(rows), side), labels_N)


def _regrouped(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the images of blocks of any size in batches of BATCH: workers must call a shared network equally often."""
    left: list[Tensor] = []
    for block in blocks:
        left.append(block)
        if sum(map(len, left)) >= BATCH:
            images = torch.cat(left)
            whole = len(images) // BATCH * BATCH
            yield from images[:whole].split(BATCH)
            left = [images[whole:]] if whole < len(images) else []
    if left:
        yield torch.cat(left)
