"""An imported data set, opened for reading; whatever is read has been checked against its recorded sha256.

Legend: n images asked for, C channels, H W pixels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.decode import THUMBNAIL_SIDE
from hydramix_dist.data.fetch import read_whole
from hydramix_dist.data.index import fingerprint_of
from hydramix_dist.data.manifest import INDEX, SPLITS, Manifest, manifest_bytes, parse_manifest
from hydramix_dist.data.pool import Workers, processes_for
from hydramix_dist.data.segment_maps import MapKey, SegmentMaps, has_maps, write_maps
from hydramix_dist.data.segmentation import segment_all
from hydramix_dist.data.shards import read_table
from hydramix_dist.data.streaming import Rows, Split, stream_encoded, stream_pixels
from hydramix_dist.store.store import Store


@dataclass(frozen=True)
class Reference:
    """A data set for another process: where it lies, and the digest of its manifest, so that it is this very one."""

    url: str
    manifest_sha256: str | None

    def open(self) -> "Dataset":
        """Return the data set. Errors as in `Dataset.open`."""
        return Dataset.open(self.url, self.manifest_sha256)


class Dataset:
    """Images, labels and segment maps of one data set, in official order within each split."""

    def __init__(self, store: Store, manifest: Manifest, index: pa.Table, manifest_sha256: str | None = None) -> None:
        """Bind to a data set whose record and index are at hand; `open` is the usual way."""
        self.store, self.manifest = store, manifest
        self.reference = Reference(store.url, manifest_sha256)
        parts = index["split"].to_numpy(zero_copy_only=False)
        self._tables = {split: index.filter(pa.array(parts == split)) for split in SPLITS}
        self._maps: dict[str, SegmentMaps] = {}

    @classmethod
    def open(cls, url: str, manifest_sha256: str | None = None) -> "Dataset":
        """Return the data set at a path or URL.

        With the digest of its manifest, which another process has read, nothing is asked of the network that the
        node's cache holds. Raises UserError: none there, another one, newer schema, damaged index.
        """
        store = Store(url)
        text = manifest_bytes(store, manifest_sha256)
        manifest = parse_manifest(store, text)
        record = next(file for file in manifest.files if file.path == INDEX)
        return cls(store, manifest, read_table(read_whole(store, record)), hashlib.sha256(text).hexdigest())

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names; a label is a position in them."""
        return self.manifest.classes

    @property
    def fingerprint(self) -> str:
        """Return the hex sha256 over ids, labels, pixel digests and classes."""
        return self.manifest.fingerprint

    def computed_fingerprint(self) -> str:
        """Return the fingerprint of what the index says, to compare with the recorded one."""
        return fingerprint_of(self.classes, pa.concat_tables([self._tables[split] for split in SPLITS]))

    @property
    def side(self) -> int:
        """Return the stored side, pixels."""
        return self.manifest.sizes.side

    def ids(self, split: str) -> tuple[str, ...]:
        """Return the images' ids in official order; `split` is "train" or "test"."""
        return tuple(self._tables[split]["id"].to_pylist())

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """Return the labels, int64 [n]."""
        return np.asarray(self._tables[split]["label"].to_numpy(), np.int64)

    def digests(self, split: str) -> tuple[str, ...]:
        """Return the hex sha256 of each image's stored pixels."""
        return tuple(self._tables[split]["sha256"].to_pylist())

    def thumbnails(self, split: str) -> npt.NDArray[np.uint8]:
        """Return small grey copies, uint8 [n, THUMBNAIL_SIDE squared], for the search for near duplicates."""
        flat = b"".join(self._tables[split]["thumbnail"].to_pylist())
        return np.frombuffer(flat, np.uint8).reshape(-1, THUMBNAIL_SIDE**2)

    def images(self, split: str, rows: Sequence[int] | Rows, side: int) -> Tensor:
        """Return uint8 images [n, 3, side, side], resized bilinearly where `side` is not the stored one.

        Raises UserError naming file and image where one is missing or damaged.
        """
        asked = np.asarray(rows, np.int64)
        x_nHWC = torch.empty(len(asked), side, side, 3, dtype=torch.uint8)
        order = np.argsort(asked, kind="stable")
        done = 0
        for block_rows, x_bCHW in self.stream(split, asked, side):
            x_nHWC[torch.from_numpy(order[done : done + len(block_rows)])] = x_bCHW.permute(0, 2, 3, 1)
            done += len(block_rows)
        return x_nHWC.permute(0, 3, 1, 2).contiguous()

    def stream(self, split: str, rows: Sequence[int] | Rows, side: int) -> Iterator[tuple[Rows, Tensor]]:
        """Yield (rows, images [b, 3, side, side]) block by block, rows ascending, in bounded memory."""
        return stream_pixels(self.part(split), rows, side)

    def part(self, split: str) -> Split:
        """Return where the images of a split lie."""
        return Split.of(self.store, self.manifest, self._tables[split])

    def segments(self, rows: Sequence[int], side: int, settings: SegmentSettings) -> Tensor:
        """Return label maps of training images, int32 [n, side, side], labels 0..n-1 in each.

        Made and stored for the whole split where absent. Raises UserError where a stored map is damaged.
        """
        return torch.from_numpy(self._maps_at(side, settings).read(rows))

    def ensure_segments(
        self,
        side: int,
        settings: SegmentSettings,
        workers: Workers | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> MapKey:
        """Return the key of the training split's segment object, made where absent.

        By `workers` that run already, else by as many processes as the number of images is worth.
        """
        key = MapKey(self.fingerprint, "train", side, settings)
        if not has_maps(self.store, key):
            ids = self.ids("train")
            blocks = stream_encoded(self.part("train"), range(len(ids)))
            pngs = (bytes(png) for _, block in blocks for png in block)
            made = segment_all(pngs, side, settings, workers or processes_for(len(ids)))
            told = progress or (lambda stage, done, total: None)
            write_maps(self.store, key, ids, made, lambda done: told("segments", done, len(ids)))
        return key

    def _maps_at(self, side: int, settings: SegmentSettings) -> SegmentMaps:
        stem = MapKey(self.fingerprint, "train", side, settings).stem
        if stem not in self._maps:
            self._maps[stem] = SegmentMaps(self.store, self.ensure_segments(side, settings))
        return self._maps[stem]
