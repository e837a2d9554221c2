"""The image sets of benchmarks/streaming.py, made and imported as any folder is, and laid out for the others.

Images are noise whose spectrum falls as that of photographs does, with more or less detail from image to image. The
encoded images of the import are what every contender stores: the same bytes.

Legend: C channels, H W pixels.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from streaming_peers.passes import checksum, decode

from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.manifest import FileRecord, read_manifest
from hydramix_dist.store import Store

CLASSES = 10
_A_TASK = 250  # images that a process makes at a time


@dataclass(frozen=True)
class Kind:
    """What a set is made of: so many images of a side in pixels, how steeply their spectrum falls, from and to.

    Only the first `distinct` of them differ, where that is given.
    """

    name: str
    images: int
    side: int
    slopes: tuple[float, float]
    distinct: int | None = None

    def tenth(self) -> "Kind":
        """Return a tenth of it."""
        return replace(self, images=self.images // 10)


SMALL = Kind("small", 20_000, 32, (1.0, 2.0))  # 2 to 3 KB each
LARGE = Kind("large", 500, 288, (0.8, 1.8))  # 100 to 250 KB each
HUGE = Kind("huge", 3_400, 512, (0.0, 0.0), distinct=50)  # 0.8 MB each, 2.5 GiB in all


@dataclass(frozen=True)
class ImageSet:
    """A set on this machine's disk, imported."""

    kind: Kind
    imported: Path

    @property
    def shards(self) -> tuple[FileRecord, ...]:
        """Return the record of each object that holds training images."""
        files = read_manifest(Store(self.imported)).files
        return tuple(file for file in files if file.path.startswith("train-"))

    @property
    def shard_bytes(self) -> int:
        """Return the size of those objects together."""
        return sum(shard.bytes for shard in self.shards)

    def encoded(self) -> Iterator[bytes]:
        """Yield the encoded training images in official order, by nothing but pyarrow."""
        for shard in self.shards:
            for group in pq.ParquetFile(self.imported / shard.path).iter_batches(256, columns=["image.bytes"]):
                yield from (row["image"]["bytes"] for row in group.to_pylist())


@dataclass(frozen=True)
class Loose:
    """The images of a set as loose files, in folders by the last digit of their number, and their digests."""

    folder: Path
    encoded_digest: int
    pixel_digest: int


def make(kind: Kind, folder: Path) -> ImageSet:
    """Return a set, made and imported in a folder."""
    source, imported = folder / "source", folder / "imported"
    distinct = min(kind.distinct or kind.images, kind.images)
    with ProcessPoolExecutor() as processes:
        for _ in processes.map(partial(_write_images, kind, source, distinct), range(0, distinct, _A_TASK)):
            pass
    for number in range(distinct, kind.images):
        _file(source, "train", number).hardlink_to(_file(source, "train", number % distinct))
    import_dataset(source, str(imported), size=kind.side, segments=None)
    return ImageSet(kind, imported)


def lay_out(images: ImageSet, folder: Path) -> Loose:
    """Return the images as loose files below a folder."""
    encoded_digest = pixel_digest = 0
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for number, png in enumerate(images.encoded()):
        (folder / str(number % 10) / f"{number:06d}.png").write_bytes(png)
        encoded_digest = (encoded_digest + checksum(png)) % 2**64
        pixel_digest = (pixel_digest + checksum(decode(png))) % 2**64
    return Loose(folder, encoded_digest, pixel_digest)


def _write_images(kind: Kind, source: Path, end: int, first: int) -> None:
    """Write some training images, and with the first ones a test image of each class, as uncompressed files."""
    rng = np.random.default_rng(first)
    down, right = np.fft.fftfreq(kind.side)[:, None], np.fft.rfftfreq(kind.side)[None]
    frequency_HW = np.maximum(np.hypot(down, right), 1 / kind.side)
    # Three patterns make a picture: the first is light and dark, and the weaker others are its colours.
    colours = np.array([[1.0, 0.3, 0.1], [1.0, 0.0, -0.2], [1.0, -0.3, 0.1]])
    numbers = [("train", number) for number in range(first, min(first + _A_TASK, end))]
    for split, number in numbers + [("test", number) for number in range(CLASSES) if first == 0]:
        white_CHW = rng.normal(size=(3, kind.side, kind.side))
        spectrum_CHW = np.fft.rfft2(white_CHW) * frequency_HW ** -rng.uniform(*kind.slopes)
        noise_CHW = np.fft.irfft2(spectrum_CHW, s=(kind.side, kind.side))
        x_CHW = np.einsum("dc,chw->dhw", colours, noise_CHW / noise_CHW.std())
        pixels_HWC = (120 + 60 * x_CHW).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels_HWC).save(_file(source, split, number))


def _file(source: Path, split: str, number: int) -> Path:
    file = source / split / f"class{number % CLASSES}" / f"{number:06d}.bmp"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
