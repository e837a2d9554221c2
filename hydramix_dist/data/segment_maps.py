"""Label maps as objects beside the shards, one for each side, settings and library version; read by byte range.

An object is three files: the maps (lossless 16-bit grey PNG), their index, and its own record, written last.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.manifest import FileRecord, broken_record, check_schema, file_record
from hydramix_dist.data.ranges import Range, read_ranges
from hydramix_dist.data.shards import read_table, table_bytes, with_places
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

FOLDER = "segments"
_SCHEMA_VERSION = 1


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

    def __init__(self, store: Store, stem: str) -> None:
        """Open a made object. Raises UserError where a file of it is missing or damaged."""
        self._store, self._file = store, f"{stem}.parquet"
        record = read_record(store, f"{stem}.json")
        table = read_table(_verified(store, record.files[1]))
        self._ranges = list(zip(table["offset"].to_pylist(), table["length"].to_pylist(), strict=True))
        self._digests, self._ids = table["sha256"].to_pylist(), table["id"].to_pylist()

    def read(self, rows: Sequence[int]) -> npt.NDArray[np.int32]:
        """Return maps [len(rows), side, side]. Raises UserError naming file and image where one is damaged."""
        try:
            found = read_ranges(self._store, [Range(self._file, *self._ranges[row]) for row in rows])
        except FileNotFoundError as error:
            raise UserError(f"{self._store.path(self._file)} is missing; {_way_out(self._store)}") from error
        maps = []
        for row, data in zip(rows, found, strict=True):
            if hashlib.sha256(data).hexdigest() != self._digests[row]:
                where = f"{self._store.path(self._file)} is damaged at the map of '{self._ids[row]}'"
                raise UserError(f"{where}; {_way_out(self._store)}")
            maps.append(np.array(Image.open(io.BytesIO(data))).astype(np.int32))
        return np.stack(maps)


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
        key = [self.fingerprint, self.side, self.settings.model_dump(mode="json"), _versions()]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return f"{FOLDER}/{self.split}-s{self.side}-{digest[:12]}"


def write_maps(store: Store, key: MapKey, ids: Sequence[str], maps: Sequence[bytes]) -> None:
    """Write the maps of a split's images, in order, with an index; the object's own record is written last."""
    data, places = with_places(pa.table({"id": pa.array(ids), "map": pa.array(maps, pa.binary())}), "map", maps)
    index = {
        "id": pa.array(ids),
        "offset": pa.array([place.offset for place in places], pa.int64()),
        "length": pa.array([place.length for place in places], pa.int64()),
        "sha256": pa.array([hashlib.sha256(png).hexdigest() for png in maps]),
    }
    files = {f"{key.stem}.parquet": data, f"{key.stem}.index.parquet": table_bytes(pa.table(index))}
    for path, content in files.items():
        store.put(path, content)
    record = SegmentRecord(
        schema_version=_SCHEMA_VERSION,
        split=key.split,
        side=key.side,
        settings=key.settings,
        fingerprint=key.fingerprint,
        versions=_versions(),
        files=tuple(file_record(path, content) for path, content in files.items()),
    )
    store.put(f"{key.stem}.json", (record.model_dump_json(indent=2) + "\n").encode())


def read_record(store: Store, path: str) -> SegmentRecord:
    """Return the record of a segment object. Raises UserError: newer schema, or damaged."""
    text = store.read(path)
    check_schema(store.path(path), text, _SCHEMA_VERSION)
    try:
        return SegmentRecord.model_validate_json(text)
    except ValidationError as error:
        raise broken_record(store.path(path)) from error


def _verified(store: Store, record: FileRecord) -> bytes:
    try:
        data = store.read(record.path)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise UserError(f"{store.path(record.path)} is missing or damaged; {_way_out(store)}")
    return data


def _versions() -> dict[str, str]:
    return {"scikit-image": version("scikit-image")}


def _way_out(store: Store) -> str:
    return f"delete {store.path(FOLDER)}, the maps are then made again"
