"""An imported data set, opened for reading: single images by byte range, each checked against its recorded pixels.

Legend: n images asked for, C channels, H W pixels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.decode import THUMBNAIL_SIDE, Pixels, Refusal, pixel_digest, read_png, resized
from hydramix_dist.data.index import fingerprint_of
from hydramix_dist.data.manifest import INDEX, SPLITS, Manifest, read_manifest
from hydramix_dist.data.pool import Workers, processes_for
from hydramix_dist.data.ranges import Range, read_ranges
from hydramix_dist.data.segment_maps import MapKey, SegmentMaps, write_maps
from hydramix_dist.data.segmentation import segment_all
from hydramix_dist.data.shards import read_table
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

_READ_AT_ONCE = 1024


class Dataset:
    """Images, labels and segment maps of one data set, in official order within each split."""

    def __init__(self, store: Store, manifest: Manifest, index: pa.Table) -> None:
        """Bind to a data set whose record and index are at hand; `open` is the usual way."""
        self.store, self.manifest = store, manifest
        parts = index["split"].to_numpy(zero_copy_only=False)
        self._tables = {split: index.filter(pa.array(parts == split)) for split in SPLITS}
        self._maps: dict[str, SegmentMaps] = {}

    @classmethod
    def open(cls, url: str) -> "Dataset":
        """Return the data set at a path or URL. Raises UserError: none there, newer schema, damaged index."""
        store = Store(url)
        manifest = read_manifest(store)
        record = next(file for file in manifest.files if file.path == INDEX)
        try:
            data = store.read(INDEX)
        except FileNotFoundError as error:
            raise UserError(f"{store.path(INDEX)} is missing; import the data again, into an empty folder") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise UserError(f"{store.path(INDEX)} is damaged; import the data again, into an empty folder")
        return cls(store, manifest, read_table(data))

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

    def images(self, split: str, rows: Sequence[int], side: int) -> Tensor:
        """Return uint8 images [n, 3, side, side], resized bilinearly where `side` is not the stored one.

        Reads the asked images' bytes and nothing else. Raises UserError naming file and image where one is damaged.
        """
        x_nHWC = np.empty((len(rows), side, side, 3), np.uint8)
        for position, pixels in enumerate(self.pixels(split, rows)):
            x_nHWC[position] = resized(pixels, side)
        return torch.from_numpy(x_nHWC).permute(0, 3, 1, 2).contiguous()

    def pixels(self, split: str, rows: Sequence[int]) -> Iterator[Pixels]:
        """Yield each image's stored pixels [s, s, 3], verified. Raises UserError naming file and image."""
        table = self._tables[split]
        for row, data in zip(rows, self._pngs(split, rows), strict=True):
            try:
                pixels = read_png(data)
                intact = pixel_digest(pixels) == table["sha256"][row].as_py()
            except Refusal:
                intact = False
            if not intact:
                file, name = table["file"][row].as_py(), table["id"][row].as_py()
                raise UserError(
                    f"{self.store.path(file)} is damaged: image '{name}' is not what was imported; "
                    f"see: hydramix data verify {self.store.url}, then import again into an empty folder"
                )
            yield pixels

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
    ) -> str:
        """Return the path stem of the training split's segment object, made where absent.

        By `workers` that run already, else by as many processes as the number of images is worth.
        """
        key = MapKey(self.fingerprint, "train", side, settings)
        if not self.store.exists(f"{key.stem}.json"):
            ids = self.ids("train")
            pngs = self._pngs("train", range(len(ids)))
            told = progress or (lambda stage, done, total: None)
            maps = []
            for made in segment_all(pngs, side, settings, workers or processes_for(len(ids))):
                maps.extend(made)
                told("segments", len(maps), len(ids))
            write_maps(self.store, key, ids, maps)
        return key.stem

    def _maps_at(self, side: int, settings: SegmentSettings) -> SegmentMaps:
        stem = MapKey(self.fingerprint, "train", side, settings).stem
        if stem not in self._maps:
            self._maps[stem] = SegmentMaps(self.store, self.ensure_segments(side, settings))
        return self._maps[stem]

    def _pngs(self, split: str, rows: Sequence[int]) -> Iterator[bytes]:
        """Yield the stored bytes of each image, read in blocks that bound the memory."""
        table = self._tables[split]
        for start in range(0, len(rows), _READ_AT_ONCE):
            block = table.select(["file", "offset", "length"]).take(pa.array(rows[start : start + _READ_AT_ONCE]))
            ranges = [Range(row["file"], row["offset"], row["length"]) for row in block.to_pylist()]
            try:
                yield from read_ranges(self.store, ranges)
            except FileNotFoundError as error:
                raise UserError(
                    f"a file of the data set {self.store.url} is missing; see: hydramix data verify {self.store.url}, "
                    "then import again into an empty folder"
                ) from error
