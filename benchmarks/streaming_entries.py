"""Who takes part in benchmarks/streaming.py, with which settings its search begins, and what it tries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import s3fs
from streaming_contenders import Settings
from streaming_sets import ImageSet, Loose

SHARD_MIB = (2, 8, 32)  # of the formats whose shard size is a choice


@dataclass(frozen=True)
class Placed:
    """A set in the bucket: its images here, the loose files, and where in the bucket all of it lies: BUCKET/NAME."""

    images: ImageSet
    loose: Loose
    bucket: s3fs.S3FileSystem
    prefix: str

    def signed(self, name: str) -> str:
        """Return an address for an object that is good for an hour without a key."""
        return str(self.bucket.sign(name, 3600))


@dataclass(frozen=True)
class Entry:
    """One who takes part: its script, the settings its search begins with, what it tries, and what else a pass needs.

    `needs` depends on the settings chosen.
    """

    script: str
    start: Settings
    options: Mapping[str, Sequence[Any]]
    needs: Callable[[Placed, Settings], Settings]


def _raw(placed: Placed, _: Settings) -> Settings:
    objects = {f"{placed.prefix}/ours/{shard.path}": shard.sha256 for shard in placed.images.shards}
    return {"sha256": objects, "urls": {name: placed.signed(name) for name in objects}}


def _ours(decoded: bool) -> Callable[[Placed, Settings], Settings]:
    return lambda placed, _: {"decode": decoded, "url": f"s3://{placed.prefix}/ours"}


def _mosaic(placed: Placed, chosen: Settings) -> Settings:
    return {"url": f"s3://{placed.prefix}/mosaic-{chosen['shard_mib']}"}


def _tars(placed: Placed, chosen: Settings) -> Settings:
    return {"urls": list(map(placed.signed, sorted(placed.bucket.find(f"{placed.prefix}/tars-{chosen['shard_mib']}"))))}


def _loose(placed: Placed, _: Settings) -> Settings:
    return {"path": f"{placed.prefix}/loose"}


_SIDE_BY_SIDE = (1, 2, 4, 8)
ENCODED = {
    "raw, s3fs.cat": Entry(
        "raw",
        {"by": "s3fs.cat", "side_by_side": 2},
        {"by": ("s3fs.cat", "s3fs.cat in threads"), "side_by_side": _SIDE_BY_SIDE},
        _raw,
    ),
    "raw, urllib": Entry("raw", {"by": "urllib", "side_by_side": 2}, {"side_by_side": _SIDE_BY_SIDE}, _raw),
    "ours, encoded": Entry("ours", {"requests": 16}, {"requests": (4, 16)}, _ours(False)),
}
DECODED = {
    "ours": Entry("ours", {"requests": 16}, {"requests": (4, 16)}, _ours(True)),
    "MosaicML Streaming": Entry(
        "mosaic",
        {"workers": 2, "shard_mib": 8, "batch": 256, "prefetch": 2, "predownload_batches": 8},
        {
            "workers": (0, 1, 2, 3),
            "shard_mib": SHARD_MIB,
            "batch": (32, 256),
            "prefetch": (2, 8),
            "predownload_batches": (2, 8, 64),
        },
        _mosaic,
    ),
    "WebDataset": Entry(
        "tars",
        {"workers": 2, "shard_mib": 8, "batch": 256, "prefetch": 2, "decoder": "library"},
        {
            "workers": (0, 1, 2, 3),
            "shard_mib": SHARD_MIB,
            "batch": (32, 256),
            "prefetch": (2, 8),
            "decoder": ("library", "plain"),
        },
        _tars,
    ),
    "Ray Data, read_images": Entry(
        "ray_images",
        {"blocks": None, "batch": 256, "prefetch": 1},
        {"blocks": (None, 2, 4, 16, 64), "batch": (32, 256), "prefetch": (1, 4)},
        _loose,
    ),
}
