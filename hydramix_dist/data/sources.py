"""What there is to import: one deterministic list of labelled items, whatever the source looks like."""

import hashlib
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from hydramix_dist.data.ahead import read_ahead
from hydramix_dist.data.archives import BROKEN_ARCHIVE, archive_tree
from hydramix_dist.data.decode import Payload, Refusal
from hydramix_dist.data.manifest import INDEX, MANIFEST, Refused
from hydramix_dist.data.objects_tree import copied, prefix_tree
from hydramix_dist.data.records import Format, find_format
from hydramix_dist.data.trees import Tree, folder_tree
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

Progress = Callable[[str, int, int], None]

_WANTED = "give a folder with one sub-folder a class, or a zip or tar of one"
_TEST_NAMES = ("test", "val", "valid", "validation")  # the first one present is the test split


@dataclass(frozen=True)
class Item:
    """One image of the source: id, split ("train", "test", or "" where the source has none), label, and its reader.

    The reader gives encoded bytes, or uint8 pixels [H, W, 3]; it raises Refusal. `size`: bytes that it fetches over a
    network, None where it fetches none.
    """

    id: str
    split: str
    label: int
    read: Callable[[], Payload]
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """A source laid open: its layout's name, classes in order, items in official order, what stays out and why."""

    name: str
    layout: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]

    def payloads(self, rows: Iterable[int]) -> Generator[Payload | Refusal]:
        """Yield what each of these items is, or the refusal it raised, in order; one far away is asked for ahead.

        Raises UserError where the store that holds them fails.
        """
        items = (self.items[row] for row in rows)
        if self.items and self.items[0].size is not None:
            yield from read_ahead((item.size or 0, partial(_payload, item)) for item in items)
        else:
            yield from map(_payload, items)

    def known_payloads(self, rows: Sequence[int], digests: Sequence[bytes]) -> Generator[Payload | Refusal]:
        """Yield as `payloads`, for items whose digests are known, by row; raises ChangedError where one is another.

        What does not match is read once more, for it may have been damaged on its way over a network.
        """
        with closing(self.payloads(rows)) as payloads:
            for row, payload in zip(rows, payloads, strict=True):
                if payload_digest(payload) != digests[row]:
                    payload = _payload(self.items[row])  # noqa: PLW2901 - what comes is what was asked for again
                    if payload_digest(payload) != digests[row]:
                        raise ChangedError(
                            f"{self.name}: '{self.items[row].id}' is not what it was when it was first read; let "
                            "nobody write to the source, and run the same command again"
                        )
                yield payload


class ChangedError(UserError):
    """An item of the source is another than it was: nothing made of it so far may be used."""


def _payload(item: Item) -> Payload | Refusal:
    try:
        return item.read()
    except Refusal as refusal:
        return refusal


def payload_digest(payload: Payload | Refusal) -> bytes:
    """Return the sha256 of an item's content, or of the reason why it has none: 32 bytes."""
    if isinstance(payload, Refusal):
        payload = str(payload).encode()
    return hashlib.sha256(payload.tobytes() if isinstance(payload, np.ndarray) else payload).digest()


@contextmanager
def open_source(src: str | Path, tell: Progress = lambda stage, done, total: None) -> Iterator[Source]:
    """Yield the source at a local path or URL. Raises UserError: missing, no known layout, or no classes in it.

    Class folders: classes are the sorted folder names, an item's id is its path, items are sorted by id. Published
    files: the official class order and numbering, ids such as "train-00029". `tell("copy", done, total)` is called
    with bytes while an archive is fetched from object storage.
    """
    with ExitStack() as stack:
        tree = _without_top(_open_tree(src, tell, stack))
        if {MANIFEST, INDEX} <= tree.files.keys():
            raise UserError(f"{src} is an imported image set already, which every command takes as it is")
        known = find_format(tree)
        yield _record_source(tree, known) if known else _folder_source(tree)


def _open_tree(src: str | Path, tell: Progress, stack: ExitStack) -> Tree:
    """Return the tree of a folder, prefix or archive, its open files closed with `stack`."""
    if "://" not in str(src):
        return _local_tree(Path(src), stack)
    store = Store(src)
    local = store.local_path()
    if local is not None:
        return _local_tree(local, stack)
    sizes = store.sizes()
    if not sizes:
        raise UserError(f"nothing lies at '{store.url}' or below it; {_WANTED}")
    if sizes.keys() == {""}:  # an object of that very name
        return _archive_tree(copied(store, sizes[""], tell, stack), store.name, store.url, stack)
    return prefix_tree(store, sizes)


def _local_tree(path: Path, stack: ExitStack) -> Tree:
    try:
        mode = path.stat().st_mode
        file = stack.enter_context(path.open("rb")) if stat.S_ISREG(mode) else None
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"'{path}' {problem}; {_WANTED}") from error
    if file is not None:
        return _archive_tree(file, path.name, str(path), stack)
    if not stat.S_ISDIR(mode):
        raise UserError(f"'{path}' is neither a folder nor a regular file; {_WANTED}")
    return folder_tree(path.resolve())


def _archive_tree(file: IO[bytes], name: str, shown: str, stack: ExitStack) -> Tree:
    try:
        return archive_tree(file, name, stack)
    except BROKEN_ARCHIVE as error:
        raise UserError(f"'{shown}' is neither a folder nor a whole zip or tar archive ({error}); {_WANTED}") from error


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
        items.append(Item(path, home[0], labels[home[1]], tree.files[path], tree.sizes.get(path)))
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
