"""Label maps as objects beside the shards, one for each side, settings and library version; read by byte range.

An object is files of maps (lossless 16-bit grey PNG), their index, and its own record, written last.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.fetch import Piece, read_pieces, read_whole
from hydramix_dist.data.manifest import FileRecord, broken_record, check_schema, file_record
from hydramix_dist.data.shards import ROWS_PER_SHARD, SHARD_BYTES, read_table, table_bytes, with_places
from hydramix_dist.errors import UserError
from hydramix_dist.store.cache import node_cache
from hydramix_dist.store.store import Store

FOLDER = "segments"
_SCHEMA_VERSION = 2
_INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.string()),
    ]
)
_MAKE_AGAIN = f"delete {{store}}/{FOLDER}, the maps are then made again"


class SegmentRecord(BaseModel):
    """The record of one segment object: what it was made from and with, and the checksums of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int
    split: str
    side: int
    settings: SegmentSettings
    fingerprint: str
    versions: dict[str, str]
    files: tuple[FileRecord, ...]


class SegmentMaps:
    """The label maps of a split at one side, opened for reading single maps."""

    def __init__(self, store: Store, key: "MapKey") -> None:
        """Open a made object. Raises UserError where a file of it is missing or damaged."""
        self._store, self._key = store, key
        with self._forgotten_when_broken():
            index = read_table(read_whole(store, find_record(store, key).files[-1], _MAKE_AGAIN)).to_pylist()
        self._pieces = [
            Piece(row["file"], row["offset"], row["length"], row["sha256"], f"the map of '{row['id']}'")
            for row in index
        ]

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.int32]:
        """Return maps [len(rows), side, side]. Raises UserError naming file and image where one is damaged."""
        with self._forgotten_when_broken():
            found = read_pieces(self._store, [self._pieces[row] for row in rows], _MAKE_AGAIN)
        return np.stack([np.array(Image.open(io.BytesIO(data))).astype(np.int32) for data in found])

    @contextlib.contextmanager
    def _forgotten_when_broken(self) -> Iterator[None]:
        """Let the node's cache forget the record of an object that is not whole: it may be made again otherwise."""
        try:
            yield
        except UserError:
            cache = node_cache()
            if cache is not None:
                cache.forget(self._key.name)
            raise


@dataclass(frozen=True)
class MapKey:
    """What a segment object was made for; `stem` is its path without suffix."""

    fingerprint: str
    split: str
    side: int
    settings: SegmentSettings

    @property
    def stem(self) -> str:
        """Return the object's path without suffix: another choice or library version has another one."""
        key = [_SCHEMA_VERSION, self.fingerprint, self.side, self.settings.model_dump(mode="json"), _versions()]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return f"{FOLDER}/{self.split}-s{self.side}-{digest[:12]}"

    @property
    def name(self) -> str:
        """Return what the node's cache knows its record by: all that decides it."""
        return f"{self.stem} of {self.fingerprint}"


def write_maps(
    store: Store, key: MapKey, ids: Sequence[str], made: Iterable[Sequence[bytes]], told: Callable[[int], None]
) -> None:
    """Write the maps of a split's images, which come in order and in batches; the object's own record is written last.

    One file of maps is held in memory at a time. `told(done)` hears how many maps are made.
    """
    files: list[FileRecord] = []
    index: list[dict[str, object]] = []
    held: list[bytes] = []
    size = 0
    for batch in made:
        for png in batch:
            if held and (len(held) == ROWS_PER_SHARD or size + len(png) > SHARD_BYTES):
                files.append(_write_file(store, f"{key.stem}-{len(files):05d}.parquet", ids, held, index))
                held, size = [], 0
            held.append(png)
            size += len(png)
        told(len(index) + len(held))
    if held:
        files.append(_write_file(store, f"{key.stem}-{len(files):05d}.parquet", ids, held, index))
    table = table_bytes(pa.Table.from_pylist(index, schema=_INDEX_SCHEMA))
    store.put(f"{key.stem}.index.parquet", table)
    record = SegmentRecord(
        schema_version=_SCHEMA_VERSION,
        split=key.split,
        side=key.side,
        settings=key.settings,
        fingerprint=key.fingerprint,
        versions=_versions(),
        files=(*files, file_record(f"{key.stem}.index.parquet", table)),
    )
    store.put(f"{key.stem}.json", (record.model_dump_json(indent=2) + "\n").encode())


def _write_file(
    store: Store, path: str, ids: Sequence[str], maps: Sequence[bytes], index: list[dict[str, object]]
) -> FileRecord:
    """Write the maps that come next and add their places to the index."""
    names = ids[len(index) : len(index) + len(maps)]
    data, places = with_places(pa.table({"id": pa.array(names), "map": pa.array(maps, pa.binary())}), "map", maps)
    store.put(path, data)
    for name, place, png in zip(names, places, maps, strict=True):
        digest = hashlib.sha256(png).hexdigest()
        index.append({"id": name, "file": path, "offset": place.offset, "length": place.length, "sha256": digest})
    return file_record(path, data)


def has_maps(store: Store, key: MapKey) -> bool:
    """Return whether the maps are made."""
    return _cached_record(store, key) is not None or store.exists(f"{key.stem}.json")


def find_record(store: Store, key: MapKey) -> SegmentRecord:
    """Return the record of made maps, out of the node's cache where it is there. Raises as `read_record`."""
    text = _cached_record(store, key)
    if text is not None:
        return SegmentRecord.model_validate_json(text)
    record = read_record(store, f"{key.stem}.json")
    cache = node_cache()
    if cache is not None and store.local_path() is None:
        cache.note(key.name, record.model_dump_json().encode())
    return record


def read_record(store: Store, path: str) -> SegmentRecord:
    """Return the record of a segment object. Raises UserError: newer schema, or damaged."""
    text = store.read(path)
    check_schema(store.path(path), text, _SCHEMA_VERSION)
    try:
        return SegmentRecord.model_validate_json(text)
    except ValidationError as error:
        raise broken_record(store.path(path)) from error


def _cached_record(store: Store, key: MapKey) -> bytes | None:
    cache = node_cache() if store.local_path() is None else None
    return None if cache is None else cache.known(key.name)


def _versions() -> dict[str, str]:
    return {"scikit-image": version("scikit-image")}
