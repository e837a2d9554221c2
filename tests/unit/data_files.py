"""Small image sources made on the spot, for the tests of the data layer."""

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def picture(seed: int, side: int = 24) -> Pixels:
    """Return smooth random pixels [side, side, 3], different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return an image file's bytes."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by relative path; return the root."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def class_files(classes: Sequence[str], count: int, top: str = "", side: int = 24, first: int = 0) -> dict[str, bytes]:
    """Return {path: PNG} with `count` different images a class."""
    return {
        f"{top}{name}/{number:03d}.png": encoded(picture(first + 1000 * label + number, side))
        for label, name in enumerate(classes)
        for number in range(count)
    }


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip archive; return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def cifar_python(images: Pixels, labels: Sequence[int], key: str = "labels", protocol: int = 2) -> bytes:
    """Return a batch of CIFAR's python version: images uint8 [n, 32, 32, 3]."""
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1).copy()
    return pickle.dumps({"data": data, key: [int(label) for label in labels]}, protocol)


def edited(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file's bytes in place."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
