"""Object storage behind fsspec: an object is put whole, and seen only once it is whole."""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, Any

import fsspec

from hydramix_dist.config.store import store_settings
from hydramix_dist.errors import UserError
from hydramix_dist.store.disk import disk_errors_as_answers

_READ_AHEAD = 2**20  # one request for what a library reads in many small pieces
S3 = ("s3", "s3a")

# One for each process and way to reach the store: s3fs does not survive a fork, and a test, or a long program, may
# change the environment it was made from.
_known: dict[str, Any] = {}


class Objects:
    """What a store needs of an object storage; names are full names as its file system has them: BUCKET/KEY."""

    def __init__(self, protocol: str) -> None:
        """Bind to the storage of a URL's protocol. Nothing is asked of it."""
        self.protocol = protocol

    @property
    def file_system(self) -> Any:
        """Return this process's fsspec file system. Raises UserError where the installation has none of that kind."""
        return _file_system(self.protocol)

    def open(self, full: str) -> IO[bytes]:
        """Return a seekable binary reader. Raises FileNotFoundError."""
        return io.BufferedReader(_RangedReader(self, full), _READ_AHEAD)

    def read(self, full: str, offset: int, length: int | None) -> bytes:
        """Return bytes from `offset` on. Raises FileNotFoundError."""
        if length == 0:
            return b""
        end = None if length is None else offset + length
        with self._answers(full, "read"):
            return bytes(self.file_system.cat_file(full, start=offset or (None if end is None else 0), end=end))

    def exists(self, full: str) -> bool:
        """Return whether an object is there, or any below that name."""
        with self._answers(full, "read"):
            return bool(self.file_system.exists(full))

    def size(self, full: str) -> int:
        """Return an object's size in bytes. Raises FileNotFoundError."""
        with self._answers(full, "read"):
            return int(self.file_system.size(full))

    def list(self, full: str) -> list[str]:
        """Return the full names of all objects below a name, without what stands for folders."""
        return list(self.sizes(full))

    def sizes(self, full: str) -> dict[str, int]:
        """Return the sizes in bytes of all objects below a name, by full name, without what stands for folders."""
        with self._answers(full, "read"):
            if self.protocol in S3:
                return dict(self.file_system.sizes(full))
            found = self.file_system.find(full, detail=True)
            return {name: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"}

    def entries(self, full: str) -> dict[str, tuple[int, float]]:
        """Return size in bytes and Unix time of the last change of all objects below a name, by full name."""
        with self._answers(full, "read"):
            if self.protocol in S3:
                return dict(self.file_system.entries(full))
            found = self.file_system.find(full, detail=True)
            files = [(name, entry) for name, entry in found.items() if entry["type"] == "file"]
            return {name: (int(entry["size"]), _changed(entry)) for name, entry in files}

    def put_if_absent(self, full: str, data: bytes) -> bool:
        """Write an object unless one is there; return whether this call wrote it."""
        with self._answers(full, "write"):
            try:
                self.file_system.pipe_file(full, data, mode="create")
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def writer(self, full: str) -> Iterator[IO[bytes]]:
        """Yield a binary writer; the object appears when the block ends well and never when it raises."""
        # Collected on this disk first: not every fsspec store can take back what a failed writer sent.
        # Without a name, so that a killed process leaves nothing; Linux gives it one for as long as it is open.
        with disk_errors_as_answers(f"{tempfile.gettempdir()} (TMPDIR)"), tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            with self._answers(full, "write"):
                self.file_system.put_file(f"/proc/self/fd/{file.fileno()}", full)

    def delete(self, full: str) -> None:
        """Remove an object, or all below a name; nothing happens where it is absent."""
        with self._answers(full, "write"):
            if self.protocol in S3:
                self.file_system.delete_below(full)
            elif self.file_system.exists(full):
                self.file_system.rm(full, recursive=True)

    def delete_all(self, fulls: Sequence[str]) -> None:
        """Remove objects, a thousand with each request where the storage has such; absent ones are no error."""
        if not fulls:
            return
        with self._answers(fulls[0], "write"):
            if self.protocol in S3:
                self.file_system.delete_all(list(fulls))
                return
            for full in fulls:
                with contextlib.suppress(FileNotFoundError):
                    self.file_system.rm_file(full)

    @contextlib.contextmanager
    def _answers(self, full: str, action: str) -> Iterator[None]:
        """Turn what the storage refuses for good into sentences; a missing object stays a FileNotFoundError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            where = self.url(full)
            if self.protocol in S3:
                from hydramix_dist.store.s3_errors import explain

                said = explain(error, where, action)
                if said is not None:
                    raise said from error
            if isinstance(error, PermissionError):
                raise UserError(f"cannot {action} {where}: permission denied ({error})") from error
            raise

    def url(self, full: str) -> str:
        """Return an object's URL."""
        return f"s3://{full}" if self.protocol in S3 else str(self.file_system.unstrip_protocol(full))


class _RangedReader(io.RawIOBase):
    """Reads an object by ranges, each tried again as any read is."""

    def __init__(self, objects: Objects, full: str) -> None:
        self._objects, self._full = objects, full
        self._size, self._at = objects.size(full), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._objects.read(self._full, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _changed(entry: Mapping[str, Any]) -> float:
    """Return the Unix time at which an object was put, which each of fsspec's storages calls otherwise; 0: unknown."""
    for name in ("LastModified", "mtime", "updated", "last_modified", "created"):
        value = entry.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _file_system(protocol: str) -> Any:
    settings = store_settings()
    if protocol not in S3:
        try:
            return fsspec.filesystem(protocol)
        except (ValueError, ImportError) as error:
            raise UserError(f"'{protocol}://' is no storage that this installation can open: {error}") from error
    # Credentials may change: their digest alone is remembered.
    aws = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    key = hashlib.sha256(repr((os.getpid(), settings, aws)).encode()).hexdigest()
    if key not in _known:
        from hydramix_dist.store.s3 import s3_file_system

        _known.setdefault(key, s3_file_system(settings))  # of several threads' ones the first stays
    return _known[key]
