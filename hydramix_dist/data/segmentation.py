"""Felzenszwalb's segmentation of stored images (method: docs/method.md 3.2 and 13.5).

Input, our choice: the unaugmented image, resized bilinearly to `side`, as floats in [-1, 1]. Labels are 0..n-1 in the
library's order, by first pixel in raster order. Legend: C channels, H W pixels.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice

import numpy as np
import numpy.typing as npt

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.decode import Pixels, encode_png, read_png, resized
from hydramix_dist.data.pool import Workers
from hydramix_dist.errors import UserError

_BATCH = 16

LabelMap = npt.NDArray[np.uint16]
_Job = tuple[list[bytes], int, SegmentSettings]


def default_side(stored_side: int) -> int:
    """Return the side segments are made at unless asked otherwise: the generator's 64, or a larger stored side."""
    return max(64, stored_side)


def segment(pixels: Pixels, side: int, settings: SegmentSettings) -> LabelMap:
    """Return the label map of stored pixels [s, s, 3] at another side: [side, side], labels 0..n-1.

    Raises UserError where an image has more segments than 16 bits can tell apart.
    """
    from skimage.segmentation import felzenszwalb  # brings scipy in, which no training needs

    x_HWC = resized(pixels, side).astype(np.float64) / 127.5 - 1.0
    raw_HW = felzenszwalb(x_HWC, settings.scale, settings.sigma, settings.min_size, channel_axis=-1)
    present, labels = np.unique(raw_HW, return_inverse=True)
    if len(present) > 65536:
        raise UserError(f"{len(present)} segments in one image are more than 65536; raise segments.min_size")
    return labels.reshape(side, side).astype(np.uint16)


def segment_all(
    pngs: Iterable[bytes], side: int, settings: SegmentSettings, workers: Workers | int
) -> Iterator[list[bytes]]:
    """Yield lists of label maps, each a lossless 16-bit grey PNG, in the images' order.

    Made by workers that run already, or by a number of them started for these maps alone.
    """
    with Workers(workers, segment_batch) if isinstance(workers, int) else nullcontext(workers) as running:
        yield from running.ordered_map(segment_batch, _jobs(pngs, side, settings))


def _jobs(pngs: Iterable[bytes], side: int, settings: SegmentSettings) -> Iterator[_Job]:
    source = iter(pngs)
    while batch := list(islice(source, _BATCH)):
        yield batch, side, settings


def segment_batch(job: _Job) -> list[bytes]:
    """Return the label maps of a batch as PNG; this is what a worker process runs."""
    pngs, side, settings = job
    return [encode_png(segment(read_png(png), side, settings)) for png in pngs]
