"""The files of a source, whether it is a folder, a zip or a tar: listed once, read one by one, never unpacked to disk.

What could lead outside the source (links, absolute names, "..") is left out and listed, and so is a name that is no
UTF-8 text, which no record could hold.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from hydramix_dist.data.decode import MAX_BYTES, Refusal
from hydramix_dist.data.manifest import Refused
from hydramix_dist.errors import UserError
from hydramix_dist.store.disk import disk_errors_as_answers

Reader = Callable[[], bytes]
_SPOOL = 512 * 2**20
# A compressed tar is unpacked as a whole. Images hardly shrink, raw pixels by a few times: more than this is a bomb.
_SLACK, _RATIO = 2**30, 50
# How the libraries say that an archive is broken or of a kind they do not read: OSError is bz2's, ValueError a name's
# encoding, RuntimeError an encrypted member or an unknown version of zip.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
)


@dataclass
class Tree:
    """Files by relative path with their readers (each raises Refusal), folders, and what was left out."""

    name: str
    files: dict[str, Reader] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    refused: list[Refused] = field(default_factory=list)

    def refuse(self, item: str, reason: str) -> None:
        """Leave an item out, with the reason."""
        shown = item.encode("utf-8", "backslashreplace").decode("utf-8")
        self.refused.append(Refused(item=shown, reason=reason))

    def below(self, top: str) -> "Tree":
        """Return the part of the tree inside the folder `top`, its paths starting there."""
        prefix = f"{top}/"
        files = {path[len(prefix) :]: read for path, read in self.files.items() if path.startswith(prefix)}
        folders = {path[len(prefix) :] for path in self.folders if path.startswith(prefix)}
        return Tree(self.name, files, folders, self.refused)


def open_tree(path: Path, stack: ExitStack) -> Tree:
    """Return the tree at a local path, its open files closed with `stack`.

    Raises UserError: missing, unreadable, neither folder nor archive, or a broken archive.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(
            f"'{path}' {problem}; give a folder with one sub-folder a class, or a zip or tar of one"
        ) from error
    if stat.S_ISDIR(mode):
        return _folder(path.resolve())
    if not stat.S_ISREG(mode):
        raise UserError(f"'{path}' is neither a folder nor a regular file; give a folder, or a zip or tar of one")
    try:
        if zipfile.is_zipfile(path):
            return _zip(path, stack)
        return _tar(path, stack)
    except _BROKEN_ARCHIVE as error:
        raise UserError(
            f"'{path}' is neither a folder nor a whole zip or tar archive ({error}); "
            "give a folder with one sub-folder a class, or a zip or tar of one"
        ) from error


def _skipped(path: str) -> bool:
    """Return whether a path is a system's own litter (.DS_Store, __MACOSX, Thumbs.db)."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


_NO_TEXT = "a name that is no UTF-8 text; rename it"


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # bytes of another encoding, which Python keeps as lone surrogates
        return False
    return True


# ---- folder


def _folder(root: Path) -> Tree:
    tree = Tree(root.name)
    for parent, folders, names in os.walk(root, onerror=_unlisted):
        here = Path(parent)
        folders.sort()
        for name in tuple(folders):
            path = (here / name).relative_to(root).as_posix()
            if not _is_text(path):
                tree.refuse(path, _NO_TEXT)
                folders.remove(name)  # nor anything below it
            elif (here / name).is_symlink():
                tree.refuse(path, "a link to a folder; such links are not followed")
            elif not _skipped(path):
                tree.folders.add(path)
        for name in sorted(names):
            path = (here / name).relative_to(root).as_posix()
            if _skipped(path):
                continue
            if not _is_text(path):
                tree.refuse(path, _NO_TEXT)
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
        _check_size(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"unreadable ({error.strerror})") from error


# ---- archives


def _admit(tree: Tree, path: str) -> bool:
    """Return whether a member's name stays inside the archive; a bad or repeated one is listed."""
    if path in ("", "."):  # the archive's own top
        return False
    if not _is_text(path):
        tree.refuse(path, _NO_TEXT)
        return False
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or ".." in parts or (len(parts[0]) > 1 and parts[0][1] == ":"):
        tree.refuse(path, "an archive member with an absolute path or '..'")
        return False
    if path in tree.files:
        tree.refuse(path, "a second archive member of this name")
        return False
    return not _skipped(path)


def _add_parents(tree: Tree, path: str) -> None:
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        tree.folders.add(path)


def _zip(path: Path, stack: ExitStack) -> Tree:
    archive, tree = stack.enter_context(zipfile.ZipFile(path)), Tree(path.stem)
    for member in archive.infolist():
        name = _clean(member.filename)
        if not _admit(tree, name):
            continue
        if stat.S_ISLNK(member.external_attr >> 16):
            tree.refuse(name, "a link inside an archive; links are not followed")
            continue
        _add_parents(tree, name)
        if member.is_dir():
            tree.folders.add(name)
        else:
            tree.files[name] = partial(_read_zip, archive, member)
    return tree


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    _check_size(member.file_size)
    try:
        return archive.read(member)
    except _BROKEN_ARCHIVE as error:
        raise Refusal(f"unreadable in the archive ({error})") from error


def _tar_stream(path: Path, stack: ExitStack) -> IO[bytes]:
    """Return the tar as a seekable stream; a compressed one is unpacked as a whole, to memory or an unnamed file."""
    stream = stack.enter_context(path.open("rb"))
    head = stream.read(6)
    stream.seek(0)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if head.startswith(magic):
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL))  # noqa: SIM115
            # A full disk is not the archive's fault, and must not be told as one.
            with opener(stream, "rb") as packed, disk_errors_as_answers(tempfile.gettempdir()):
                _unpack(packed, spool, _SLACK + _RATIO * path.stat().st_size)
            spool.seek(0)
            return spool
    return stream


def _unpack(packed: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, spool: IO[bytes], limit: int) -> None:
    while block := packed.read(2**20):
        if spool.tell() + len(block) > limit:
            raise tarfile.ReadError(f"absurdly large: it unpacks to more than {limit} bytes")
        spool.write(block)


def _tar(path: Path, stack: ExitStack) -> Tree:
    tree = Tree(path.name.split(".")[0])
    archive = stack.enter_context(tarfile.open(fileobj=_tar_stream(path, stack), mode="r:"))  # noqa: SIM115
    for member in archive.getmembers():
        name = _clean(member.name)
        if not _admit(tree, name):
            continue
        if member.issym() or member.islnk():
            tree.refuse(name, "a link inside an archive; links are not followed")
        elif member.isdir():
            _add_parents(tree, name)
            tree.folders.add(name)
        elif member.isfile():
            _add_parents(tree, name)
            tree.files[name] = partial(_read_tar, archive, member)
        else:
            tree.refuse(name, "no regular file")
    return tree


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.size)
    try:
        reader = archive.extractfile(member)
        data = reader.read() if reader else b""
    except (OSError, tarfile.TarError) as error:
        raise Refusal(f"unreadable in the archive ({error})") from error
    if len(data) != member.size:
        raise Refusal("truncated in the archive")
    return data


def _clean(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise Refusal(f"absurdly large: {size} bytes, at most {MAX_BYTES} are read")
