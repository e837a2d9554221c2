"""What was read from object storage, kept on the node's disk for all its processes: one file a content, by sha256.

A file appears by a rename, so that readers never see half of one and a killed writer leaves only a temporary file. Who
reads checks the content against its name: a damaged file is removed and read from the store again.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

from hydramix_dist.config.store import VARIABLE, store_settings
from hydramix_dist.errors import UserError
from hydramix_dist.store.traffic import traffic

_log = logging.getLogger("hydramix")
_TEMPORARY = ".partial-"
_STALE_SECONDS = 3600.0  # no read takes that long: the writer of such a temporary file was killed
_LOOKS_EACH = 0.02  # of the limit written by this process between two looks at the size of the whole
_DOWN_TO = 0.9  # of the limit: not at each file again


class Cache:
    """Contents by their hex sha256, in a folder of at most about `limit` bytes; the longest unused go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Bind to a folder, which is made at the first `put`."""
        self.folder, self._limit = folder, limit
        self._written = limit  # so that the first put of a process looks
        self._works = True

    def get(self, sha256: str) -> bytes | None:
        """Return a content, checked, or None where it is not there."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except OSError:  # not there, removed in between, or a disk that fails: the store has it
            traffic.count(cache_misses=1)
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            _log.warning("%s was damaged on disk; it is read from the store again", path)
            traffic.count(checksum_failures=1)
            with contextlib.suppress(OSError):  # of a cache that may only be read
                path.unlink()
            traffic.count(cache_misses=1)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used
        traffic.count(cache_hits=1)
        return data

    def put(self, sha256: str, data: bytes | mmap) -> None:
        """Keep a content that the caller has checked; where the disk refuses, say so once and go on without."""
        self._keep(self._path(sha256), data)

    def _keep(self, path: Path, data: bytes | mmap) -> None:
        if not self._works:
            return
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._written += len(data)
            if self._written >= _LOOKS_EACH * self._limit and self._evict():
                self._written = 0
        except OSError as error:
            self._works = False
            _log.warning("the cache in %s takes nothing more (%s); going on without it", self.folder, error.strerror)

    def known(self, name: str) -> bytes | None:
        """Return the content that was noted under a name, None where none was, or it is not there any more."""
        try:
            sha256 = self._note(name).read_text()
        except OSError:
            return None
        return self.get(sha256) if re.fullmatch("[0-9a-f]{64}", sha256) else None

    def note(self, name: str, data: bytes) -> None:
        """Keep a content that never changes under its name: one that holds a digest of all that decides it."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.put(sha256, data)
        self._keep(self._note(name), sha256.encode())

    def forget(self, name: str) -> None:
        """Forget what was noted under a name."""
        with contextlib.suppress(OSError):  # it is not there, or the cache may only be read
            self._note(name).unlink()

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _note(self, name: str) -> Path:
        return self._path(hashlib.sha256(name.encode()).hexdigest()).with_suffix(".name")

    def _evict(self) -> bool:
        """Remove the longest unused files above the limit, and temporary ones of killed writers.

        Return whether this was done: not where another process is at it, which may have looked before the last write.
        """
        with self._alone() as alone:
            if not alone:
                return False
            files, now = [], time.time()
            for path in filter(_is_ours, self.folder.glob("??/*")):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if not path.name.startswith(_TEMPORARY):
                        files.append((status.st_mtime, status.st_size, path))
                    elif now - status.st_mtime > _STALE_SECONDS:
                        path.unlink()
            total = sum(size for _, size, _ in files)
            if total > self._limit:
                for _, size, path in sorted(files):
                    path.unlink(missing_ok=True)
                    total -= size
                    if total <= _DOWN_TO * self._limit:
                        break
            return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether this process alone evicts; the lock ends with the process, however it ends."""
        with (self.folder / ".evicting").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _is_ours(path: Path) -> bool:
    """Return whether a file is the cache's: whatever else lies in a folder that was named by mistake stays."""
    return bool(re.fullmatch(r"[0-9a-f]{64}(\.name)?|\.partial-[0-9a-f]{32}", path.name))


_caches: dict[tuple[Path, float], Cache] = {}


def node_cache() -> Cache | None:
    """Return the cache that the settings name, None where nothing is to be kept."""
    settings = store_settings()
    if settings.cache is None:
        return None
    try:
        folder = Path(settings.cache).expanduser()
    except RuntimeError as error:  # a user without a home, as containers have
        raise UserError(
            f"there is no telling where the cache '{settings.cache}' lies ({error}); give a folder, or null, as "
            f"`cache` in {VARIABLE}"
        ) from error
    key = folder, settings.cache_gib
    if key not in _caches:
        _caches[key] = Cache(folder, int(settings.cache_gib * 2**30))
    return _caches[key]
