"""The files of a source, wherever they lie: listed once, read one by one, never unpacked to disk.

What could lead outside the source (links, absolute names, "..") is left out and listed, and so is a name that is no
UTF-8 text, which no record could hold.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hydramix_dist.data.decode import MAX_BYTES, Refusal
from hydramix_dist.data.manifest import Refused
from hydramix_dist.errors import UserError

Reader = Callable[[], bytes]
NO_TEXT = "a name that is no UTF-8 text; rename it"


@dataclass
class Tree:
    """Files by relative path with their readers (each raises Refusal), folders, and what was left out.

    `sizes`: bytes of each file where it is fetched over a network, so that many are fetched at once; else empty.
    """

    name: str
    files: dict[str, Reader] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    refused: list[Refused] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def refuse(self, item: str, reason: str) -> None:
        """Leave an item out, with the reason."""
        shown = item.encode("utf-8", "backslashreplace").decode("utf-8")
        self.refused.append(Refused(item=shown, reason=reason))

    def add_parents(self, path: str) -> None:
        """Take in the folders that a path names; a folder that holds nothing but litter is one all the same."""
        while "/" in path:
            path = path.rsplit("/", 1)[0]
            if not is_litter(path):
                self.folders.add(path)

    def below(self, top: str) -> "Tree":
        """Return the part of the tree inside the folder `top`, its paths starting there."""
        prefix = f"{top}/"
        files = {path[len(prefix) :]: read for path, read in self.files.items() if path.startswith(prefix)}
        folders = {path[len(prefix) :] for path in self.folders if path.startswith(prefix)}
        sizes = {path[len(prefix) :]: size for path, size in self.sizes.items() if path.startswith(prefix)}
        return Tree(self.name, files, folders, self.refused, sizes)


def is_litter(path: str) -> bool:
    """Return whether a path is a system's own litter (.DS_Store, __MACOSX, Thumbs.db)."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


def is_text(path: str) -> bool:
    """Return whether a name is UTF-8 text."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # bytes of another encoding, which Python keeps as lone surrogates
        return False
    return True


def check_size(size: int) -> None:
    """Raise Refusal for a file too large to read."""
    if size > MAX_BYTES:
        raise Refusal(f"absurdly large: {size} bytes, at most {MAX_BYTES} are read")


def folder_tree(root: Path) -> Tree:
    """Return the tree of a folder on this machine's disk. Raises UserError where a part of it cannot be listed."""
    tree = Tree(root.name)
    for parent, folders, names in os.walk(root, onerror=_unlisted):
        here = Path(parent)
        folders.sort()
        for name in tuple(folders):
            path = (here / name).relative_to(root).as_posix()
            if not is_text(path):
                tree.refuse(path, NO_TEXT)
                folders.remove(name)  # nor anything below it
            elif (here / name).is_symlink():
                tree.refuse(path, "a link to a folder; such links are not followed")
            elif not is_litter(path):
                tree.folders.add(path)
        for name in sorted(names):
            path = (here / name).relative_to(root).as_posix()
            if is_litter(path):
                continue
            if not is_text(path):
                tree.refuse(path, NO_TEXT)
            elif not (here / name).resolve().is_relative_to(root):
                tree.refuse(path, "a link to a file outside the source")
            elif (here / name).is_symlink() and not (here / name).exists():
                tree.refuse(path, "a link that leads nowhere")
            elif not (here / name).is_file():
                tree.refuse(path, "no regular file")
            else:
                tree.files[path] = partial(_read_file, here / name)
    return tree


def _unlisted(error: OSError) -> None:
    raise UserError(
        f"folder {error.filename} cannot be listed ({error.strerror}); mend its rights or leave it out"
    ) from error


def _read_file(path: Path) -> bytes:
    try:
        check_size(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"unreadable ({error.strerror})") from error
