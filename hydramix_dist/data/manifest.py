"""The record of a data set: what it holds, where it came from, and the checksum of every file. Written last."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hydramix_dist.errors import UserError
from hydramix_dist.store.cache import node_cache
from hydramix_dist.store.store import Store

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.parquet"
SPLITS = ("train", "test")

Fit = Literal["crop", "letterbox"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileRecord(_Record):
    """One object of the data set: path below its folder, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


class Refused(_Record):
    """One thing of the source that did not come in, and why."""

    item: str
    reason: str


class Sizes(_Record):
    """The stored side, and the smallest and largest width and height of the originals, pixels."""

    side: int
    width: tuple[int, int]
    height: tuple[int, int]


class Manifest(_Record):
    """The whole record. `counts` has, for each split, the number of images of each class, in class order."""

    schema_version: int
    source: str
    layout: str
    plan: str
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    sizes: Sizes
    fit: Fit
    holdout: float | None
    licence: str | None
    versions: dict[str, str]
    files: tuple[FileRecord, ...]
    refused: tuple[Refused, ...]
    warnings: tuple[str, ...]
    fingerprint: str


def read_manifest(store: Store) -> Manifest:
    """Return the record of the data set in `store`. Raises UserError: none there, a newer schema, or a broken file."""
    return parse_manifest(store, manifest_bytes(store))


def manifest_bytes(store: Store, sha256: str | None = None) -> bytes:
    """Return the record as it is stored; with its digest it may come out of the node's cache.

    Raises UserError where there is none, or another than that digest's.
    """
    cache = node_cache() if store.local_path() is None else None
    try:
        text = (cache.get(sha256) if cache and sha256 else None) or store.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{store.url} holds no data set (no {MANIFEST} there); make one with: hydramix data import SRC {store.url}"
        ) from error
    found = hashlib.sha256(text).hexdigest()
    if sha256 not in (None, found):
        raise UserError(f"{store.url} holds another data set than when this run began; run the command again")
    if cache:
        cache.put(found, text)
    return text


def parse_manifest(store: Store, text: bytes) -> Manifest:
    """Return the record that a manifest's bytes hold. Raises UserError for another schema, or a broken file."""
    check_schema(store.path(MANIFEST), text, SCHEMA_VERSION)
    version = json.loads(text)["schema_version"]
    if version < SCHEMA_VERSION:
        raise UserError(
            f"{store.path(MANIFEST)} was written by an older version of this program (schema {version}, this one reads "
            f"{SCHEMA_VERSION}); import the source again into an empty folder, or where it is a run's own data, delete "
            f"{store.url} and run the command again: the images keep their fingerprint, and runs go on with them"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise broken_record(store.path(MANIFEST)) from error


class _Version(BaseModel):
    schema_version: int


def check_schema(path: str, text: bytes, newest: int) -> None:
    """Raise UserError where a JSON record was written by a newer version than this one, or is no record at all."""
    try:
        version = _Version.model_validate_json(text).schema_version
    except ValidationError as error:
        raise broken_record(path) from error
    if version > newest:
        raise UserError(
            f"{path} has schema version {version}, this program reads up to {newest}; "
            "use the program version that wrote it, or a later one"
        )


def broken_record(path: str) -> UserError:
    """Return the error for a record that cannot be read."""
    return UserError(f"{path} is damaged; import the data again, into an empty folder")


def file_record(path: str, data: bytes) -> FileRecord:
    """Return the record of an object's content."""
    return FileRecord(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
