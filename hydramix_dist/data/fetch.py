"""Bytes of a data set, each checked against its recorded sha256 before use: from the node's cache, else from the store.

On this machine's own disk there is no cache in between. What does not match is read once more, for it may have been
damaged on the way; then it is an error.
"""

import hashlib
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hydramix_dist.config.store import store_settings
from hydramix_dist.data.manifest import FileRecord
from hydramix_dist.data.ranges import Range, read_ranges
from hydramix_dist.errors import DamagedError, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.cache import Cache, node_cache
from hydramix_dist.store.traffic import traffic

# Bytes of one request. A shard is one: in two parts it takes a quarter longer to come, for the copy into one piece, and
# several shards are read side by side anyway.
_PART = 16 * 2**20


class Piece(NamedTuple):
    """A checked part of a file: its byte range, sha256, and what it is called in errors ("image 'a/b.png'")."""

    file: str
    offset: int
    length: int
    sha256: str
    name: str


IMPORT_AGAIN = "see: hydramix data verify {store}, then import again into an empty folder"


def read_whole(store: Store, file: FileRecord, way_out: str = IMPORT_AGAIN) -> bytes | mmap.mmap:
    """Return a file's content. Raises UserError, with the way out, where it is missing or not what was written."""
    cache = _cache(store)
    kept = cache.get(file.sha256) if cache else None
    if kept is not None:
        return kept
    for _ in range(2):
        data = _read(store, file, way_out)
        if hashlib.sha256(data).hexdigest() == file.sha256:
            if cache:
                cache.put(file.sha256, data)
            return data
        traffic.count(checksum_failures=1)
    raise damaged(store, file.path, "its content is not what was written", way_out)


def read_pieces(store: Store, pieces: Sequence[Piece], way_out: str = IMPORT_AGAIN) -> list[bytes]:
    """Return the content of each piece, in order. Raises UserError naming file and piece where one is not whole."""
    cache = _cache(store)
    found = [cache.get(piece.sha256) if cache else None for piece in pieces]
    for last in (False, True):
        absent = [position for position, data in enumerate(found) if data is None]
        if not absent:
            break
        wanted = [pieces[position] for position in absent]
        for position, data in zip(absent, _read_ranges(store, wanted, way_out), strict=True):
            piece = pieces[position]
            if hashlib.sha256(data).hexdigest() == piece.sha256:
                found[position] = data
                if cache:
                    cache.put(piece.sha256, data)
                continue
            traffic.count(checksum_failures=1)
            if last:
                raise damaged(store, piece.file, f"{piece.name} is not what was written", way_out)
    return [data for data in found if data is not None]


def damaged(store: Store, path: str, problem: str, way_out: str = IMPORT_AGAIN) -> UserError:
    """Return the error for a file of a data set that is not as it was written."""
    return UserError(f"{store.path(path)} is damaged: {problem}; {way_out.format(store=store.url)}")


def _read(store: Store, file: FileRecord, way_out: str) -> bytes | mmap.mmap:
    try:
        if file.bytes <= _PART:
            return store.read(file.path)
        # Into one piece of memory as they come: joined at the end, all of it would be there twice. Mapped, so that the
        # system has it back at once: the C library keeps such blocks for each thread, 60 MiB of them in a pass.
        whole = mmap.mmap(-1, file.bytes)

        def fill(first: int) -> None:
            part = store.read(file.path, first, min(_PART, file.bytes - first))
            whole[first : first + len(part)] = part

        starts = range(0, file.bytes, _PART)
        with ThreadPoolExecutor(min(len(starts), store_settings().requests)) as threads:
            list(threads.map(fill, starts))
        return whole
    except FileNotFoundError as error:
        raise _missing(store, file.path, way_out) from error
    except DamagedError as error:  # seen by the store's own checksum, and read twice already
        raise damaged(store, file.path, "its content is not what was written", way_out) from error


def _read_ranges(store: Store, pieces: Sequence[Piece], way_out: str) -> list[bytes]:
    try:
        return read_ranges(store, [Range(piece.file, piece.offset, piece.length) for piece in pieces])
    except FileNotFoundError as error:
        missing = next((piece.file for piece in pieces if not store.exists(piece.file)), pieces[0].file)
        raise _missing(store, missing, way_out) from error


def _missing(store: Store, path: str, way_out: str) -> UserError:
    return UserError(f"{store.path(path)} is missing; {way_out.format(store=store.url)}")


def _cache(store: Store) -> Cache | None:
    return node_cache() if store.local_path() is None else None
