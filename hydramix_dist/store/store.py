"""A folder behind fsspec, in which objects are complete or absent; local disks are served, object storage is not yet.

Local folders are served through the operating system, so that a put is a rename within one file system; any
other URL goes to fsspec as one whole put, and object stores show an object only once it is whole.
"""

import contextlib
import copy
import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec

from hydramix_dist.errors import UserError

# "memory" is for the tests: it stands for all that is not this machine's disk.
_SERVED = ("file", "local", "memory")
_TEMPORARY = ".partial-"


class Store:
    """Objects under one folder URL, named by relative paths with forward slashes."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Bind to a folder; nothing is read or created. Raises UserError for a URL that is not served."""
        protocol = fsspec.utils.get_protocol(os.fspath(url))
        if protocol not in _SERVED:
            raise UserError(
                f"'{url}': storage of kind '{protocol}' is not served yet; give a folder on this machine's disk"
            )
        try:
            self._fs, root = fsspec.core.url_to_fs(os.fspath(url))
        except (ValueError, ImportError) as error:
            raise UserError(f"'{url}' is no path or URL this installation can open: {error}") from error
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._root: str = root.rstrip("/") or "/"

    @property
    def url(self) -> str:
        """Return the folder's path (local) or URL."""
        return self._root if self._local else str(self._fs.unstrip_protocol(self._root))

    @property
    def name(self) -> str:
        """Return the folder's last path part."""
        return self._root.rsplit("/", 1)[-1]

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def child(self, path: str) -> "Store":
        """Return the store of a folder below this one. Raises UserError for a path that leaves this one."""
        below = copy.copy(self)
        below._root = self._full(path).rstrip("/") or "/"
        return below

    def path(self, path: str = "") -> str:
        """Return the full path or URL of an object, for messages."""
        return f"{self.url}/{path}" if path else self.url

    def local_path(self, path: str = "") -> Path | None:
        """Return the object's path on this machine's disk, or None where the store is not local."""
        return Path(self._full(path)) if self._local else None

    def open(self, path: str) -> IO[bytes]:
        """Return a seekable binary reader, for libraries that read only parts. Raises FileNotFoundError."""
        return self._fs.open(self._full(path), "rb")  # type: ignore[no-any-return]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`, to the end where `length` is None. Raises FileNotFoundError."""
        end = None if length is None else offset + length
        return bytes(self._fs.cat_file(self._full(path), start=offset or None, end=end))

    def exists(self, path: str = "") -> bool:
        """Return whether an object or a folder of that name is there."""
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        """Return an object's size in bytes. Raises FileNotFoundError."""
        return int(self._fs.size(self._full(path)))

    def list(self, prefix: str = "") -> list[str]:
        """Return the relative paths of all objects under a folder, sorted, without unfinished ones."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._full(prefix))
        names = (str(name)[len(self._root) :].lstrip("/") for name in found)
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith(_TEMPORARY))

    def put(self, path: str, data: bytes) -> None:
        """Write an object as a whole, replacing an old one. Raises UserError on a full or read-only disk."""
        with self.writer(path) as file:
            file.write(data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless one is there; return whether this call wrote it.

        Of several racers exactly one wins on local disks and on object stores with conditional writes.
        """
        full = self._full(path)
        if not self._local:
            try:
                self._fs.pipe_file(full, data, mode="create")
            except FileExistsError:
                return False
            return True
        with disk_errors_as_answers(full):
            temporary = self._temporary(full)
            try:
                _write_synced(temporary, data)
                os.link(temporary, full)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """Yield a binary writer; the object appears when the block ends well and never when it raises."""
        full = self._full(path)
        with disk_errors_as_answers(full):
            if self._local:
                temporary = self._temporary(full)
                try:
                    with temporary.open("wb") as file:
                        yield file
                        file.flush()
                        os.fsync(file.fileno())
                    temporary.replace(full)
                finally:
                    temporary.unlink(missing_ok=True)
                return
            # Collected on this disk first: not every fsspec store can take back what a failed writer sent.
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                self._fs.put_file(file.name, full)

    def append(self, path: str, data: bytes) -> None:
        """Add bytes to the end of an object, made where absent; on object stores this rewrites it."""
        full = self._full(path)
        with disk_errors_as_answers(full):
            if self._local:
                Path(full).parent.mkdir(parents=True, exist_ok=True)
                with Path(full).open("ab") as file:
                    file.write(data)
            else:
                old = self.read(path) if self.exists(path) else b""
                self.put(path, old + data)

    def delete(self, path: str = "") -> None:
        """Remove an object, or a folder with all below it; nothing happens where it is absent."""
        if self.exists(path):
            self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        parts = path.split("/") if path else []
        if path.startswith("/") or ".." in parts:
            raise UserError(f"'{path}' leads out of {self.url}; only paths below it are read or written")
        return "/".join((self._root.rstrip("/"), path)) if path else self._root

    def _temporary(self, full: str) -> Path:
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}-{target.name}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_errors_as_answers(full: str) -> Iterator[None]:
    """Turn the disk's own refusals to write `full` into sentences; other errors of the block pass through."""
    try:
        yield
    except OSError as error:
        not_a_folder = "a part of that path is a file, not a folder; choose another folder"
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again, it goes on where it was",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the disk is read-only; choose another folder",
            errno.EACCES: "no permission to write there; choose another folder or mend its rights",
            errno.EPERM: "no permission to write there; choose another folder or mend its rights",
            errno.ENOENT: "such a folder cannot be made there; choose another folder",
            errno.ENOTDIR: not_a_folder,
            errno.EEXIST: not_a_folder,
            errno.EISDIR: "a folder of that name is there; choose another name or remove it",
        }
        if error.errno in reasons and _concerns(error, full):
            raise UserError(f"cannot write {full}: {reasons[error.errno]}") from error
        raise


def _concerns(error: OSError, full: str) -> bool:
    """Return whether an error comes from writing `full`, and not from another file that a writer's block opened."""
    if error.filename is None:  # from a descriptor: write, flush, fsync
        return True
    named, target = Path(os.fsdecode(error.filename)), Path(full)
    return target.is_relative_to(named) or (named.parent == target.parent and named.name.startswith(_TEMPORARY))
