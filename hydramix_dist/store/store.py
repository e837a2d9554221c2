"""A folder, on this machine's disk or in object storage, in which objects are complete or absent."""

import contextlib
import copy
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from hydramix_dist.errors import UserError
from hydramix_dist.store.disk import Disk
from hydramix_dist.store.objects import S3, Objects

# A URL that lost a slash would be taken for a local path, and a folder of that name made.
_TORN_URL = re.compile(r"(?i)^(s3a?|gs|gcs|az|abfss?|https?|memory|file):(?!//)|^s3a?//")


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# "memory" is for tests: it stands for all that is no disk and not S3.
_SHOWN = ("s3://", "gs://", "gcs://", "az://", "abfs://")
_SERVED = ("file", "local", "memory", "s3a", *(kind.removesuffix("://") for kind in _SHOWN))


class Entry(NamedTuple):
    """What a listing says of an object: its size, and when it was put, by the clock of whoever keeps it (Unix time)."""

    bytes: int
    changed: float


class Store:
    """Objects under one folder URL, named by relative paths with forward slashes."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Bind to a folder; nothing is read or created. Raises UserError for a URL that is not served."""
        text = os.fspath(url)
        if _TORN_URL.match(text):
            raise UserError(f"'{text}' is no URL; write it as s3://BUCKET/PREFIX")
        if "::" in text or _CONTROL.search(text):
            raise UserError(f"{text!r} is no URL that can be read: it has '::' or a control character in it")
        protocol = fsspec.utils.get_protocol(text).lower()
        if protocol not in _SERVED:
            raise UserError(
                f"'{text}': storage of kind '{protocol}://' is not served; give a folder of this machine or a URL with "
                f"{', '.join(_SHOWN)}"
            )
        self._files: Disk | Objects
        if protocol in ("file", "local"):
            self._files = Disk()
            root = str(fsspec.core.strip_protocol(text))
        else:
            self._files = Objects(protocol)
            root = _s3_name(text) if protocol in S3 else str(self._files.file_system._strip_protocol(text))
        self._root: str = root.rstrip("/") or "/"

    @property
    def url(self) -> str:
        """Return the folder's path (local) or URL."""
        return self._root if isinstance(self._files, Disk) else self._files.url(self._root)

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
        return Path(self._full(path)) if isinstance(self._files, Disk) else None

    def for_ray(self) -> tuple[str, Any]:
        """Return (path, pyarrow file system) of this folder, for Ray's own storage; (path, None) on a disk."""
        if isinstance(self._files, Disk):
            return self._root, None
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        # The same client as all else here: endpoint, certificates, credentials and patience are set once.
        return self._root, PyFileSystem(FSSpecHandler(self._files.file_system))

    def open(self, path: str) -> IO[bytes]:
        """Return a seekable binary reader, for libraries that read only parts. Raises FileNotFoundError."""
        return self._files.open(self._full(path))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`, to the end where `length` is None. Raises FileNotFoundError."""
        return self._files.read(self._full(path), offset, length)

    def get(self, path: str) -> bytes | None:
        """Return an object's content, None where there is none: one request, where looking first would be three."""
        try:
            return self.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str = "") -> bool:
        """Return whether an object or a folder of that name is there."""
        return self._files.exists(self._full(path))

    def size(self, path: str) -> int:
        """Return an object's size in bytes. Raises FileNotFoundError."""
        return self._files.size(self._full(path))

    def list(self, prefix: str = "") -> list[str]:
        """Return the relative paths of all objects under a folder, sorted, without unfinished ones."""
        return sorted(self._relative(name) for name in self._files.list(self._full(prefix)))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the sizes in bytes of all objects under a folder, by relative path, sorted, from one listing.

        Of a URL that is itself an object: its size, by the empty path.
        """
        found = self._files.sizes(self._full(prefix))
        return {self._relative(name): found[name] for name in sorted(found)}

    def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return size and last change of all objects under a folder, by relative path, sorted, from one listing."""
        found = self._files.entries(self._full(prefix))
        return {self._relative(name): Entry(*found[name]) for name in sorted(found)}

    def put(self, path: str, data: bytes) -> None:
        """Write an object as a whole, replacing an old one. Raises UserError where it cannot be written."""
        with self.writer(path) as file:
            file.write(data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless one is there; return whether this call wrote it.

        Of several racers exactly one wins on local disks and on object stores with conditional writes.
        """
        return self._files.put_if_absent(self._full(path), data)

    @contextlib.contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """Yield a binary writer; the object appears when the block ends well and never when it raises."""
        with self._files.writer(self._full(path)) as file:
            yield file

    def delete(self, path: str = "") -> None:
        """Remove an object, or a folder with all below it; nothing happens where it is absent."""
        self._files.delete(self._full(path))

    def delete_all(self, paths: Iterable[str]) -> None:
        """Remove objects, many with one request where the store can; nothing happens where one is absent."""
        self._files.delete_all([self._full(path) for path in paths])

    def _relative(self, full: str) -> str:
        return full[len(self._root) :].lstrip("/")

    def _full(self, path: str) -> str:
        parts = path.split("/") if path else []
        if path.startswith("/") or ".." in parts:
            raise UserError(f"'{path}' leads out of {self.url}; only paths below it are read or written")
        return "/".join((self._root.rstrip("/"), path)) if path else self._root


def split_target(target: str) -> tuple[Store, str]:
    """Return the folder and the name of a file that is to be written. Raises UserError where it names no file."""
    folder, slash, name = target.rpartition("/")
    if not name or folder.endswith(":/"):
        raise UserError(f"'{target}' names a folder, no file; give FOLDER/NAME")
    return Store(folder or slash or "."), name


def _s3_name(url: str) -> str:
    """Return BUCKET/PREFIX of an S3 URL. Raises UserError where it is none, without showing credentials in it."""
    rest = url.split("://", 1)[1]
    if "@" in rest.split("/")[0]:
        raise UserError(
            "an s3:// URL with credentials in it is refused, for URLs are written into records; give them as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    bucket, _, prefix = rest.partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise UserError(
            f"'{url}' names no bucket: write s3://BUCKET/PREFIX, where a bucket has 3 to 63 small letters, digits, '-' "
            "or '.'"
        )
    if "//" in prefix or prefix.startswith("/") or {".", ".."} & set(prefix.split("/")) or "\\" in prefix:
        raise UserError(
            f"'{url}' has an empty part, '.' or '..' between its slashes, or a backslash; write s3://BUCKET/PREFIX"
        )
    return f"{bucket}/{prefix}".rstrip("/")
