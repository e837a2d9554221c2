"""CIFAR-10, CIFAR-100 and STL-10 in their published files: many images in one file, numbered officially.

Formats: the CIFAR pages' binary and python versions (ciFAIR uses the latter), and STL-10's binary version. The images
of a CIFAR training set are numbered through its batches in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hydramix_dist.data.decode import Pixels, Refusal
from hydramix_dist.data.pickles import load_arrays, text_list
from hydramix_dist.data.trees import Tree
from hydramix_dist.errors import UserError

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_CIFAR100 = tuple(f"fine-{label:02d}" for label in range(100))

Labels = npt.NDArray[np.int64]
Part = tuple[Pixels, Labels]  # images [n, H, W, 3], labels [n]


@dataclass(frozen=True)
class Format:
    """One published layout: its files by split, in official order, and how to read a file and the class names."""

    kind: str
    files: dict[str, tuple[str, ...]]
    read: Callable[[Tree, str], Part]
    names: Callable[[Tree], Sequence[str]]

    def fits(self, tree: Tree) -> bool:
        """Return whether the tree is of this layout: its first training file is there."""
        return self.files["train"][0] in tree.files

    def load(self, tree: Tree) -> tuple[tuple[str, ...], dict[str, Part]]:
        """Return class names in official order, and images and labels of each split. Raises UserError."""
        missing = [name for names in self.files.values() for name in names if name not in tree.files]
        if missing:
            raise UserError(f"{tree.name} looks like {self.kind}, but lacks: {', '.join(missing)}")
        classes = tuple(self.names(tree))
        if len(set(classes)) < len(classes):
            raise UserError(f"{tree.name}: two classes have the same name")
        splits = {}
        for split, names in self.files.items():
            parts = [self.read(tree, name) for name in names]
            splits[split] = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
            labels = splits[split][1]
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
                raise UserError(f"{tree.name}: the {split} labels go beyond the {len(classes)} classes of {self.kind}")
        return classes, splits


def find_format(tree: Tree) -> Format | None:
    """Return the published layout that the tree has, or None."""
    return next((known for known in FORMATS if known.fits(tree)), None)


def _content(tree: Tree, name: str) -> bytes:
    try:
        return tree.files[name]()
    except Refusal as refusal:
        raise UserError(f"{tree.name}/{name}: {refusal}") from refusal


def _binary_rows(tree: Tree, name: str, length: int) -> npt.NDArray[np.uint8]:
    data = _content(tree, name)
    if not data or len(data) % length:
        raise UserError(
            f"{tree.name}/{name} is truncated: {len(data)} bytes are no whole number of records of {length} bytes"
        )
    return np.frombuffer(data, np.uint8).reshape(-1, length)


def _cifar_pixels(rows: npt.NDArray[Any]) -> Pixels:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _cifar_binary(tree: Tree, name: str, label_bytes: int) -> Part:
    """Read records of `label_bytes` labels, the last of which counts, and 3072 bytes of colour planes."""
    rows = _binary_rows(tree, name, label_bytes + 3072)
    return _cifar_pixels(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


def _cifar_python(tree: Tree, name: str, key: str) -> Part:
    batch = load_arrays(_content(tree, name), f"{tree.name}/{name}")
    data, given = batch.get("data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{tree.name}/{name}: 'data' is no array of bytes with 3072 columns")
    plain = isinstance(given, np.ndarray) or (isinstance(given, list) and all(isinstance(v, int) for v in given))
    labels = np.asarray(given if plain else [])
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise UserError(f"{tree.name}/{name}: '{key}' is no list of {len(data)} labels")
    return _cifar_pixels(data), labels.astype(np.int64)


def _stl_binary(tree: Tree, name: str) -> Part:
    """Read planes stored column by column, and labels that count from 1."""
    rows = _binary_rows(tree, name, 3 * 96 * 96)
    labels = _binary_rows(tree, name.replace("_X", "_y"), 1)[:, 0].astype(np.int64) - 1
    if len(labels) != len(rows):
        raise UserError(f"{tree.name}/{name} has {len(rows)} images, but there are {len(labels)} labels")
    return np.ascontiguousarray(rows.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)), labels


def _names_text(tree: Tree, file: str, fallback: Sequence[str]) -> Sequence[str]:
    if file not in tree.files:
        return fallback
    return [line.strip() for line in _content(tree, file).decode("utf-8", "replace").splitlines() if line.strip()]


def _names_pickle(tree: Tree, file: str, key: str, fallback: Sequence[str]) -> Sequence[str]:
    if file not in tree.files:
        return fallback
    name = f"{tree.name}/{file}"
    return text_list(load_arrays(_content(tree, file), name).get(key, fallback), name)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

FORMATS = (
    Format(
        "CIFAR-10 binary",
        {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
        partial(_cifar_binary, label_bytes=1),
        partial(_names_text, file="batches.meta.txt", fallback=_CIFAR10),
    ),
    Format(
        "CIFAR-100 binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        partial(_cifar_binary, label_bytes=2),
        partial(_names_text, file="fine_label_names.txt", fallback=_CIFAR100),
    ),
    Format(
        "CIFAR-10 python",
        {"train": _BATCHES, "test": ("test_batch",)},
        partial(_cifar_python, key="labels"),
        partial(_names_pickle, file="batches.meta", key="label_names", fallback=_CIFAR10),
    ),
    Format(
        "CIFAR-100 python",
        {"train": ("train",), "test": ("test",)},
        partial(_cifar_python, key="fine_labels"),
        partial(_names_pickle, file="meta", key="fine_label_names", fallback=_CIFAR100),
    ),
    Format(
        "STL-10 binary",
        {"train": ("train_X.bin",), "test": ("test_X.bin",)},
        _stl_binary,
        partial(_names_text, file="class_names.txt", fallback=_STL10),
    ),
)
