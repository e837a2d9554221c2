"""What is in a data set and what to know before trusting results on it, as plain data; the command line renders it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.manifest import Sizes
from hydramix_dist.data.neighbours import near_pairs

IMBALANCE = 3  # largest class against smallest, from which on it is said

Kind = Literal["exact duplicates", "near duplicates", "imbalance", "few images", "import"]


@dataclass(frozen=True)
class ClassCount:
    """One class and its number of images in each split."""

    name: str
    train: int
    test: int


@dataclass(frozen=True)
class Twins:
    """Two images that are equal (similarity 1, exact) or nearly so: (split, id) of each, and whether classes agree."""

    first: tuple[str, str]
    second: tuple[str, str]
    similarity: float
    exact: bool
    same_class: bool


@dataclass(frozen=True)
class Warned:
    """One thing to know before trusting a result: its kind, and a whole sentence."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Overview:
    """A data set at a glance. `twins` lists the pairs that the duplicate warnings count: each image with the first one
    it equals, and with the first one it resembles, so there are at most twice as many pairs as images.
    """

    url: str
    classes: tuple[ClassCount, ...]
    sizes: Sizes
    fingerprint: str
    licence: str | None
    warnings: tuple[Warned, ...]
    twins: tuple[Twins, ...]


def describe(dataset: Dataset, shots: Sequence[int] = ()) -> Overview:
    """Return counts, sizes and warnings; `shots` are the N for which too small classes are named."""
    manifest = dataset.manifest
    classes = tuple(map(ClassCount, dataset.classes, manifest.counts["train"], manifest.counts["test"]))
    inside, across = _twins(dataset, "train"), _twins(dataset, "train", "test")
    warnings = [
        *_duplicates(inside, "inside the training split, which holds fewer different images than it seems"),
        *_duplicates(across, "between train and test, which make test results too good"),
        *_balance(classes),
        *_few(classes, shots),
        *(Warned("import", text) for text in manifest.warnings),
    ]
    if manifest.refused:
        reason = f"{len(manifest.refused)} items of the source were refused; the manifest lists them with reasons"
        warnings.append(Warned("import", reason))
    return Overview(
        url=dataset.store.url,
        classes=classes,
        sizes=manifest.sizes,
        fingerprint=dataset.fingerprint,
        licence=manifest.licence,
        warnings=tuple(warnings),
        twins=(*inside, *across),
    )


def _twins(dataset: Dataset, first: str, second: str | None = None) -> tuple[Twins, ...]:
    """Return equal pairs, then near pairs, inside one split or between two."""
    other = second or first
    digests, other_digests = dataset.digests(first), dataset.digests(other)
    exact = _equal_pairs(digests, other_digests, second is None)
    near = near_pairs(dataset.thumbnails(first), dataset.thumbnails(second) if second else None)
    ids, other_ids = dataset.ids(first), dataset.ids(other)
    labels, other_labels = dataset.labels(first), dataset.labels(other)
    scored = [(i, j, 1.0, True) for i, j in exact]
    scored += [(i, j, score, False) for i, j, score in near if digests[i] != other_digests[j]]
    return tuple(
        Twins((first, ids[i]), (other, other_ids[j]), score, same, bool(labels[i] == other_labels[j]))
        for i, j, score, same in scored
    )


def _equal_pairs(first: Sequence[str], second: Sequence[str], inside: bool) -> list[tuple[int, int]]:
    """Return rows with equal digests. Inside one split each copy is paired with the first one, so pairs stay few."""
    places: dict[str, int] = {}
    for row, digest in enumerate(first):
        places.setdefault(digest, row)
    pairs = [(places[digest], row) for row, digest in enumerate(second) if digest in places]
    return [(i, j) for i, j in pairs if i != j] if inside else pairs


def _duplicates(twins: Sequence[Twins], where: str) -> list[Warned]:
    warnings = []
    kinds: tuple[tuple[bool, Kind], ...] = ((True, "exact duplicates"), (False, "near duplicates"))
    for exact, kind in kinds:
        pairs = [pair for pair in twins if pair.exact == exact]
        if pairs:
            mixed = sum(not pair.same_class for pair in pairs)
            strange = f", {mixed} of them with different labels" if mixed else ""
            example = f"'{pairs[0].first[1]}' and '{pairs[0].second[1]}'"
            count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
            warnings.append(Warned(kind, f"{count} of {kind} {where}{strange} (for instance {example})"))
    return warnings


def _balance(classes: Sequence[ClassCount]) -> list[Warned]:
    least, most = min(classes, key=lambda c: c.train), max(classes, key=lambda c: c.train)
    if most.train < IMBALANCE * least.train:
        return []
    text = f"unbalanced: '{most.name}' has {most.train} training images, '{least.name}' {least.train}"
    return [Warned("imbalance", f"{text}; look at balanced accuracy")]


def _few(classes: Sequence[ClassCount], shots: Sequence[int]) -> list[Warned]:
    warnings = []
    for wanted in shots:
        short = [f"'{entry.name}' ({entry.train})" for entry in classes if entry.train < wanted]
        if short:
            text = f"fewer than {wanted} training images: {', '.join(short)}; such a class gives all it has"
            warnings.append(Warned("few images", text))
    return warnings
