"""N-shot subsets: the published seeded draw, a validation part, and the subset as tensors on one device.

Source: docs/method.md section 7 (the ChimeraMix released code's draw). Legend: N images of the subset, C channels,
H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.draws import uniform
from hydramix_dist.errors import UserError

Rows = npt.NDArray[np.int64]

_LEAST_FOR_VALIDATION = 5


def draw_subset(labels: Rows, shots: int, seed: int) -> Rows:
    """Return the row numbers of a subset with `shots` images of each class, int64, in the drawn order.

    One NumPy default generator shuffles each class's rows in class order, the first `shots` are kept, then the joint
    list is shuffled (ChimeraMix). Declared rule: a class with fewer images gives all it has. Raises UserError for
    shots < 1.
    """
    if shots < 1:
        raise UserError(f"shots {shots} is below 1; a subset needs at least one image of each class")
    # The one use of NumPy's own generator: the published subsets are defined by it.
    generator = np.random.default_rng(seed)
    kept = []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        generator.shuffle(rows)
        kept.append(rows[:shots])
    subset = np.concatenate(kept)
    generator.shuffle(subset)
    return subset.astype(np.int64)


def split_validation(labels: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Return (training, validation) positions in a subset, both sorted, with `share` of each class for validation.

    Rounded for each class, at least one image on both sides. Raises UserError where a class has fewer than 5 images, or
    for a share outside (0, 1). Our choice: in each class those with the smallest draws.
    """
    if not 0 < share < 1:
        raise UserError(f"validation share {share} is not between 0 and 1")
    present, counts = np.unique(labels, return_counts=True)
    if counts.min() < _LEAST_FOR_VALIDATION:
        raise UserError(
            f"a validation part needs at least {_LEAST_FOR_VALIDATION} images of each class, the subset has one with "
            f"{counts.min()}; set validation to 0, or give more images (and shots)"
        )
    keys = uniform(seed, "validation part", np.arange(len(labels)), 1)[:, 0].numpy()
    held = []
    for label, count in zip(present, counts, strict=True):
        rows = np.flatnonzero(labels == label)
        held.append(rows[np.argsort(keys[rows])][: min(max(round(share * int(count)), 1), int(count) - 1)])
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


@dataclass(frozen=True)
class ShotSet:
    """Everything a training step needs of its images, on one device.

    images_NCHW uint8, labels_N int64, segments_NHW int32 with labels 0..n-1 in each map (or None), all at one side.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    ids: tuple[str, ...]
    segments_NHW: Tensor | None
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "ShotSet":
        """Return the set on another device."""
        segments = None if self.segments_NHW is None else self.segments_NHW.to(device)
        return ShotSet(self.images_NCHW.to(device), self.labels_N.to(device), self.ids, segments, self.classes)

    @cached_property
    def members(self) -> tuple[Tensor, Tensor]:
        """Return (rows, counts): row numbers of each class [classes, largest], padded with 0, and counts [classes]."""
        counts = torch.bincount(self.labels_N, minlength=len(self.classes))
        table = torch.zeros(len(self.classes), int(counts.max()), dtype=torch.int64)
        for label in range(len(self.classes)):
            rows = torch.nonzero(self.labels_N == label).flatten()
            table[label, : len(rows)] = rows.cpu()
        return table.to(self.labels_N.device), counts


def load_shots(dataset: Dataset, rows: Sequence[int] | Rows, side: int, segments: SegmentSettings | None) -> ShotSet:
    """Return training images with labels, and label maps where settings are given, at one side, in CPU memory."""
    chosen = [int(row) for row in rows]
    ids = dataset.ids("train")
    return ShotSet(
        images_NCHW=dataset.images("train", chosen, side),
        labels_N=torch.from_numpy(dataset.labels("train")[chosen]),
        ids=tuple(ids[row] for row in chosen),
        segments_NHW=None if segments is None else dataset.segments(chosen, side, segments),
        classes=dataset.classes,
    )
