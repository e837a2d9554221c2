"""What there is to import: one deterministic list of labelled items, whatever the source looks like."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydramix_dist.data.decode import Payload
from hydramix_dist.data.manifest import Refused
from hydramix_dist.data.records import Format, find_format
from hydramix_dist.data.trees import Tree, open_tree
from hydramix_dist.errors import UserError

_TEST_NAMES = ("test", "val", "valid", "validation")  # the first one present is the test split


@dataclass(frozen=True)
class Item:
    """One image of the source: id, split ("train", "test", or "" where the source has none), label, and its reader.

    The reader gives encoded bytes, or uint8 pixels [H, W, 3]; it raises Refusal.
    """

    id: str
    split: str
    label: int
    read: Callable[[], Payload]


@dataclass(frozen=True)
class Source:
    """A source laid open: its layout's name, classes in order, items in official order, what stays out and why."""

    name: str
    layout: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]


@contextmanager
def open_source(src: str | Path) -> Iterator[Source]:
    """Yield the source at a local path. Raises UserError: missing, no known layout, or no classes in it.

    Class folders: classes are the sorted folder names, an item's id is its path, items are sorted by id. Published
    files: the official class order and numbering, ids such as "train-00029".
    """
    if "://" in str(src):
        raise UserError(f"'{src}' is a URL; sources are read from this machine's disk: copy it here first")
    with ExitStack() as stack:
        tree = _without_top(open_tree(Path(src), stack))
        known = find_format(tree)
        yield _record_source(tree, known) if known else _folder_source(tree)


def _without_top(tree: Tree) -> Tree:
    """Return the tree below its one top folder, where that holds folders or a published layout, else the tree."""
    tops = {path.split("/")[0] for path in tree.folders}
    if len(tops) != 1 or tops & {"train", *_TEST_NAMES} or find_format(tree):
        return tree
    inner = tree.below(next(iter(tops)))
    return inner if inner.folders or find_format(inner) else tree


def _record_source(tree: Tree, known: Format) -> Source:
    classes, splits = known.load(tree)
    items = tuple(
        Item(f"{split}-{row:05d}", split, int(label), partial(images.__getitem__, row))
        for split, (images, labels) in splits.items()
        for row, label in enumerate(labels)
    )
    return Source(tree.name, known.kind, classes, items, tuple(tree.refused), ())


def _folder_source(tree: Tree) -> Source:
    tops = {path for path in tree.folders if "/" not in path}
    notes: list[str] = []
    splits = _split_folders(tree, tops, notes)
    used = set(splits) if splits else tops
    for name in sorted(tops - used):
        notes.append(f"folder '{name}' beside {' and '.join(sorted(used))} was left out")
    # {folder of a class: (split, class name)}
    homes = {
        path: (splits[path.split("/")[0]], path.split("/")[1]) if splits else ("", path)
        for path in tree.folders
        if (path.count("/") == 1 and path.split("/")[0] in splits if splits else path in tops)
    }
    if not homes:
        raise UserError(f"{tree.name} has no class folders; one sub-folder a class is needed, with its images inside")
    names = sorted({name for _, name in homes.values()})
    labels = {name: label for label, name in enumerate(names)}
    items, strays, depth = [], 0, 2 if splits else 1
    for path in sorted(tree.files):
        home = homes.get("/".join(path.split("/")[:depth]))
        if home is None or path.count("/") < depth:
            strays += 1
            continue
        items.append(Item(path, home[0], labels[home[1]], tree.files[path]))
    if strays:
        notes.append(f"{strays} files outside the class folders were left out")
    refused = [*tree.refused, *_empty(homes, items, depth)]
    return Source(tree.name, "class folders", tuple(names), tuple(items), tuple(refused), tuple(notes))


def _split_folders(tree: Tree, tops: set[str], notes: list[str]) -> dict[str, str]:
    """Return {folder: split} where the source has a train folder, else nothing.

    A folder "train" without folders inside, beside others than test folders, is a class like them: the vehicle.
    """
    a_class = not any(path.startswith("train/") for path in tree.folders) and tops - {"train", *_TEST_NAMES}
    if "train" not in tops or a_class:
        return {}
    test = next((name for name in _TEST_NAMES if name in tops), None)
    if test is None:
        return {"train": ""}  # the test part is cut out of it
    if test != "test":
        notes.append(f"folder '{test}' serves as the test split")
    return {"train": "train", test: "test"}


def _empty(homes: dict[str, tuple[str, str]], items: list[Item], depth: int) -> list[Refused]:
    filled = {"/".join(item.id.split("/")[:depth]) for item in items}
    return [Refused(item=path, reason="an empty class folder") for path in sorted(homes) if path not in filled]
