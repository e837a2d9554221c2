"""Near duplicates: pairs of images whose small grey thumbnails agree up to brightness and contrast.

The measure is the correlation of two 16x16 thumbnails, at least 0.98 (our choice). Measured on four real sets: of
copies saved as JPEG of quality 50, with contrast times 0.8 or 20 grey levels brighter, 95 of 100 or more reach it; hand
signs before one wall stay below 0.97, rolled steel textures give 2 pairs in 300 images. A tile photographed under
several exposures is found. A shifted or turned copy is not. Images flatter than one grey level are not compared.

Each image is paired with the first one that it resembles and no other, so there are never more pairs than images: of
n frames of one film, say, n - 1 instead of n squared.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hydramix_dist.data.decode import THUMBNAIL_SIDE

THRESHOLD = 0.98
_FLAT = 1.0  # standard deviation of a thumbnail, grey levels
_BLOCK = 2048

Thumbnails = npt.NDArray[np.uint8]
_Vectors = npt.NDArray[np.float32]
_Rows = npt.NDArray[np.intp]


class Pair(NamedTuple):
    """Two rows and their similarity in [THRESHOLD, 1]."""

    first: int
    second: int
    similarity: float


def near_pairs(first: Thumbnails, second: Thumbnails | None = None) -> list[Pair]:
    """Return near pairs between two sets of thumbnails, uint8 [n, 256], or within the first (first < second row).

    At most one for each second row, with the lowest first row, sorted by second row.
    """
    a_full, a_short = _directions(first)
    b_full, b_short = (a_full, a_short) if second is None else _directions(second)
    pairs: dict[int, Pair] = {}
    for i in range(0, len(a_full), _BLOCK):
        for j in range(i if second is None else 0, len(b_full), _BLOCK):
            candidates = a_short[i : i + _BLOCK] @ b_short[j : j + _BLOCK].T >= THRESHOLD
            rows, columns = np.nonzero(candidates)
            rows, columns = rows + i, columns + j
            if second is None:
                rows, columns = rows[rows < columns], columns[rows < columns]
            for row, column, similarity in _confirmed(a_full, b_full, rows, columns):
                pairs.setdefault(column, Pair(row, column, similarity))
    return [pairs[column] for column in sorted(pairs)]


def _confirmed(a_nD: _Vectors, b_nD: _Vectors, rows: _Rows, columns: _Rows) -> Iterator[Pair]:
    """Yield, of candidates sorted by row, the first real pair of each column."""
    while len(columns):
        # One candidate of each column at a time: where the bound held what it promised, one round is enough.
        _, first = np.unique(columns, return_index=True)
        similarity = np.einsum("nd,nd->n", a_nD[rows[first]], b_nD[columns[first]])
        found = similarity >= THRESHOLD
        hits = first[found]
        yield from map(Pair, rows[hits].tolist(), columns[hits].tolist(), np.minimum(similarity[found], 1.0).tolist())
        left = ~np.isin(columns, columns[hits])
        left[first] = False
        rows, columns = rows[left], columns[left]


def _directions(thumbnails: Thumbnails) -> tuple[_Vectors, _Vectors]:
    """Return unit vectors [n, 256] without their mean, and short ones [n, 65] whose product is never smaller.

    A short vector holds the 8x8 block averages, scaled to keep lengths, and the length of what they leave out: by
    Cauchy-Schwarz the product of two is an upper bound on the correlation, at a quarter of the work.
    """
    x_nD = thumbnails.astype(np.float32)
    x_nD -= x_nD.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(x_nD, axis=1, keepdims=True)
    flat = norms < _FLAT * THUMBNAIL_SIDE
    x_nD = np.where(flat, 0.0, x_nD / np.where(flat, 1.0, norms)).astype(np.float32)
    half = THUMBNAIL_SIDE // 2
    low = x_nD.reshape(-1, half, 2, half, 2).sum(axis=(2, 4)).reshape(len(x_nD), -1) / 2
    rest = np.sqrt(np.clip((x_nD**2).sum(axis=1) - (low**2).sum(axis=1), 0.0, None) + np.where(flat[:, 0], 0.0, 1e-6))
    return x_nD, np.hstack([low, rest[:, None]]).astype(np.float32)
