"""The files of a source in object storage: those below a prefix, listed once, or those of an archive, copied once."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import IO

from hydramix_dist.data.ahead import read_ahead
from hydramix_dist.data.decode import Refusal
from hydramix_dist.data.trees import Tree, check_size, is_litter
from hydramix_dist.errors import UserError
from hydramix_dist.store.disk import disk_errors_as_answers
from hydramix_dist.store.store import Store

_BLOCK = 8 * 2**20


def prefix_tree(store: Store, sizes: dict[str, int]) -> Tree:
    """Return the tree of the objects below a store's folder, given their sizes by relative path.

    A folder is what an object's name has before a slash; the empty objects that some tools make for folders are none.
    """
    tree = Tree(store.name)
    for path, size in sizes.items():
        if set(path.split("/")) & {"", ".", ".."}:
            tree.refuse(path, "an object with an empty part, '.' or '..' between its slashes; rename it")
            continue
        tree.add_parents(path)
        if not is_litter(path):
            tree.files[path] = partial(_read_object, store, path, size)
            tree.sizes[path] = size
    return tree


def _read_object(store: Store, path: str, size: int) -> bytes:
    check_size(size)
    try:
        return store.read(path)
    except FileNotFoundError as error:
        raise Refusal("it was listed, but is not there any more") from error


def copied(store: Store, size: int, tell: Callable[[str, int, int], None], stack: ExitStack) -> IO[bytes]:
    """Return the one object that a store's URL names, in an unnamed file on this disk, which ends with `stack`.

    `tell("copy", done, total)` is called with bytes. Raises UserError: the object is gone, or this disk is full.
    """
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    blocks = [(min(_BLOCK, size - start), start) for start in range(0, size, _BLOCK)]
    try:
        for data in read_ahead((length, partial(store.read, "", start, length)) for length, start in blocks):
            with disk_errors_as_answers(tempfile.gettempdir()):
                file.write(data)
                file.flush()
            tell("copy", file.tell(), size)
    except FileNotFoundError as error:
        raise UserError(f"{store.url} was removed while it was copied to this disk") from error
    file.seek(0)
    return file
