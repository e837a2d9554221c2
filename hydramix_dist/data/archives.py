"""The files of a zip or tar (also gz, bz2, xz), told by its content: listed once, read one by one, never unpacked."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import PurePosixPath
from typing import IO

from hydramix_dist.data.decode import Refusal
from hydramix_dist.data.trees import NO_TEXT, Tree, check_size, is_litter, is_text
from hydramix_dist.store.disk import disk_errors_as_answers

# A compressed tar is unpacked as a whole. Images hardly shrink, raw pixels by a few times: more than this is a bomb.
_SLACK, _RATIO = 2**30, 50
_SPOOL = 512 * 2**20
# How the libraries say that an archive is broken or of a kind they do not read: OSError is bz2's, ValueError a name's
# encoding, RuntimeError an encrypted member or an unknown version of zip.
BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
)


def archive_tree(file: IO[bytes], name: str, stack: ExitStack) -> Tree:
    """Return the tree of an archive in a seekable file, named after the file's `name`; closed with `stack`.

    Raises one of BROKEN_ARCHIVE where it is none, or no whole one.
    """
    return _zip(file, name, stack) if zipfile.is_zipfile(file) else _tar(file, name, stack)


def _admit(tree: Tree, path: str) -> bool:
    """Return whether a member's name stays inside the archive; a bad or repeated one is listed."""
    if path in ("", "."):  # the archive's own top
        return False
    if not is_text(path):
        tree.refuse(path, NO_TEXT)
        return False
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or ".." in parts or (len(parts[0]) > 1 and parts[0][1] == ":"):
        tree.refuse(path, "an archive member with an absolute path or '..'")
        return False
    if path in tree.files:
        tree.refuse(path, "a second archive member of this name")
        return False
    return not is_litter(path)


def _zip(file: IO[bytes], name: str, stack: ExitStack) -> Tree:
    archive, tree = stack.enter_context(zipfile.ZipFile(file)), Tree(PurePosixPath(name).stem)
    for member in archive.infolist():
        path = _clean(member.filename)
        if not _admit(tree, path):
            continue
        if stat.S_ISLNK(member.external_attr >> 16):
            tree.refuse(path, "a link inside an archive; links are not followed")
            continue
        tree.add_parents(path)
        if member.is_dir():
            tree.folders.add(path)
        else:
            tree.files[path] = partial(_read_zip, archive, member)
    return tree


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    check_size(member.file_size)
    try:
        return archive.read(member)
    except BROKEN_ARCHIVE as error:
        raise Refusal(f"unreadable in the archive ({error})") from error


def _tar_stream(file: IO[bytes], stack: ExitStack) -> IO[bytes]:
    """Return the tar as a seekable stream; a compressed one is unpacked as a whole, to memory or an unnamed file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open)):
        if head.startswith(magic):
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL))  # noqa: SIM115
            # A full disk is not the archive's fault, and must not be told as one.
            with opener(file, "rb") as packed, disk_errors_as_answers(tempfile.gettempdir()):
                _unpack(packed, spool, _SLACK + _RATIO * size)
            spool.seek(0)
            return spool
    return file


def _unpack(packed: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, spool: IO[bytes], limit: int) -> None:
    while block := packed.read(2**20):
        if spool.tell() + len(block) > limit:
            raise tarfile.ReadError(f"absurdly large: it unpacks to more than {limit} bytes")
        spool.write(block)


def _tar(file: IO[bytes], name: str, stack: ExitStack) -> Tree:
    tree = Tree(name.split(".", maxsplit=1)[0])
    archive = stack.enter_context(tarfile.open(fileobj=_tar_stream(file, stack), mode="r:"))  # noqa: SIM115
    for member in archive.getmembers():
        path = _clean(member.name)
        if not _admit(tree, path):
            continue
        if member.issym() or member.islnk():
            tree.refuse(path, "a link inside an archive; links are not followed")
        elif member.isdir():
            tree.add_parents(path)
            tree.folders.add(path)
        elif member.isfile():
            tree.add_parents(path)
            tree.files[path] = partial(_read_tar, archive, member)
        else:
            tree.refuse(path, "no regular file")
    return tree


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    check_size(member.size)
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
