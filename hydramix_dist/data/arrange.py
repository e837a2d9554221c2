"""Which decoded item goes to which split under which label: the hold-out, and classes without images."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hydramix_dist.data.manifest import Refused
from hydramix_dist.data.sources import Source
from hydramix_dist.errors import UserError


@dataclass(frozen=True)
class Decoded:
    """One item that came in: its number in the source, and the digest of its stored pixels."""

    item: int
    sha256: str


@dataclass
class Arrangement:
    """The classes that remain, each item's (split, label), and what was left out or is worth saying."""

    classes: tuple[str, ...] = ()
    places: dict[int, tuple[str, int]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    held_out: bool = False


def arrange(source: Source, decoded: Sequence[Decoded], holdout: float) -> Arrangement:
    """Return where everything goes. Raises UserError: no image at all, one in all, or fewer than two classes.

    A source without a test split gives `holdout` of each class to one, see `hold_out`. A class without a training image
    is left out, with its test images; the labels of the others close ranks.
    """
    if len(decoded) < 2:
        count = "no readable image" if not decoded else "one readable image in all"
        raise UserError(f"{source.name} has {count}; a data set needs at least two classes with images")
    result = Arrangement()
    splits = {entry.item: source.items[entry.item].split for entry in decoded}
    if not any(splits.values()):
        result.held_out = True
        splits = _held_out(source, decoded, holdout, result.warnings)
    counts = {split: [0] * len(source.classes) for split in ("train", "test")}
    for item, split in splits.items():
        counts[split][source.items[item].label] += 1
    kept = [label for label, count in enumerate(counts["train"]) if count]
    if len(kept) < 2:
        names = ", ".join(source.classes[label] for label in kept) or "none"
        raise UserError(
            f"{source.name} has training images of fewer than two classes ({names}): there is nothing to classify; "
            "one sub-folder a class is needed, each with images"
        )
    for label, name in enumerate(source.classes):
        if label not in kept:
            lost = f" its {counts['test'][label]} test images are left out" if counts["test"][label] else ""
            why = (
                "all its images equal test images of other classes"
                if result.held_out and lost
                else "no readable training image"
            )
            result.refused.append(Refused(item=f"class '{name}'", reason=f"{why};{lost}".rstrip(";")))
        elif not counts["test"][label]:
            result.warnings.append(f"class '{name}' has no test image: its accuracy cannot be measured")
    new = {old: label for label, old in enumerate(kept)}
    result.classes = tuple(source.classes[label] for label in kept)
    result.places = {
        item: (split, new[source.items[item].label])
        for item, split in splits.items()
        if source.items[item].label in new
    }
    return result


def _held_out(source: Source, decoded: Sequence[Decoded], share: float, warnings: list[str]) -> dict[int, str]:
    by_class: list[list[Decoded]] = [[] for _ in source.classes]
    for entry in decoded:
        by_class[source.items[entry.item].label].append(entry)
    tests = hold_out([[entry.sha256 for entry in entries] for entries in by_class], share)
    warnings.append(
        f"the source has no test split: {share:.0%} of each class was held out for testing, by pixel digest"
    )
    return {entry.item: "test" if entry.sha256 in tests else "train" for entry in decoded}


def hold_out(digests: Iterable[Sequence[str]], share: float) -> set[str]:
    """Return the pixel digests whose images form the test split, given those of each class.

    In each class, images ranked by digest go to the test part as long as they fit into `share` of it, so the choice
    depends on the pixels alone, and images with equal pixels are on one side, also across classes. A class of
    at least two different images that no other class has keeps at least one on each side.
    """
    tests: set[str] = set()
    decided: set[str] = set()
    for members in digests:
        groups: dict[str, int] = defaultdict(int)
        for digest in members:
            groups[digest] += 1
        # Halves are rounded down: where images are few, the odd one belongs to training.
        target = min(max(math.ceil(share * len(members) - 0.5), 1), len(members) - 1)
        held = sum(size for digest, size in groups.items() if digest in tests)
        free = sorted(digest for digest in groups if digest not in decided)
        for digest in free:
            if held + groups[digest] <= target:
                tests.add(digest)
                held += groups[digest]
        if not held and len(groups) > 1 and free:  # every group of equal images is larger than the share
            tests.add(min(free, key=lambda digest: (groups[digest], digest)))
        decided |= groups.keys()
    return tests
