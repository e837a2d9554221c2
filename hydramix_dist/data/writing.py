"""The second half of an import: parts become shards, index and the record of them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pyarrow as pa

import hydramix_dist
from hydramix_dist.data import staging
from hydramix_dist.data.arrange import Arrangement, Decoded, arrange
from hydramix_dist.data.index import INDEX_SCHEMA, fingerprint_of
from hydramix_dist.data.manifest import (
    INDEX,
    SCHEMA_VERSION,
    SPLITS,
    FileRecord,
    Fit,
    Manifest,
    Refused,
    Sizes,
    file_record,
)
from hydramix_dist.data.shards import Place, ShardRow, by_shard, image_shard, table_bytes
from hydramix_dist.data.sources import Source
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store


@dataclass(frozen=True)
class Choice:
    """What was chosen for this import; `plan` is the digest of all that decides the data set's content."""

    plan: str
    side: int
    fit: Fit
    holdout: float
    licence: str | None


def write_objects(store: Store, source: Source, parts: dict[str, range], choice: Choice) -> tuple[Manifest, pa.Table]:
    """Return the manifest (not written yet) and the index, after writing shards and index.

    Raises FileExistsError where one of them is there with another content, FileNotFoundError where a part is gone.
    """
    outcomes = pa.concat_tables([staging.read_outcomes(store, path) for path in parts]).to_pylist()
    came_in = [row for row in outcomes if row["reason"] is None]
    try:
        result = arrange(source, [Decoded(row["item"], row["sha256"]) for row in came_in], choice.holdout)
    except UserError:
        store.delete(staging.FOLDER)  # these images never become a data set: the folder is free for mended ones
        raise
    files, index = _write_shards(store, source, parts, result)
    index_data = table_bytes(index)
    put_once(store, INDEX, index_data)
    kept = [row for row in came_in if row["item"] in result.places]
    small = sum(min(row["width"], row["height"]) < choice.side for row in kept)
    if small:
        result.warnings.append(f"{small} of {len(kept)} images are smaller than {choice.side} pixels and were enlarged")
    labels = {split: [place[1] for place in result.places.values() if place[0] == split] for split in SPLITS}
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        source=source.name,
        layout=source.layout,
        plan=choice.plan,
        classes=result.classes,
        counts={
            split: tuple(np.bincount(np.asarray(labels[split], np.int64), minlength=len(result.classes)).tolist())
            for split in SPLITS
        },
        sizes=Sizes(side=choice.side, width=_span(kept, "width"), height=_span(kept, "height")),
        fit=choice.fit,
        holdout=choice.holdout if result.held_out else None,
        licence=choice.licence,
        versions={"hydramix_dist": hydramix_dist.__version__}
        | {name: version(name) for name in ("pillow", "numpy", "pyarrow", "scikit-image")},
        files=(*files, file_record(INDEX, index_data)),
        refused=(
            *source.refused,
            *(Refused(item=source.items[row["item"]].id, reason=row["reason"]) for row in outcomes if row["reason"]),
            *result.refused,
        ),
        warnings=(*source.notes, *result.warnings),
        fingerprint=fingerprint_of(result.classes, index),
    )
    return manifest, index


def _write_shards(
    store: Store, source: Source, parts: dict[str, range], result: Arrangement
) -> tuple[list[FileRecord], pa.Table]:
    """Return the records of all shards, train before test, and the index, holding one shard and one part in memory."""
    files: list[FileRecord] = []
    index = [INDEX_SCHEMA.empty_table()]
    for split in SPLITS:
        for number, rows in enumerate(by_shard(_rows(store, source, parts, result, split))):
            path = f"{split}-{number:05d}.parquet"
            data, places = image_shard(rows, result.classes)
            put_once(store, path, data)
            files.append(file_record(path, data))
            index.append(_index(rows, places, split, path))
    return files, pa.concat_tables(index).combine_chunks()


def _rows(store: Store, source: Source, parts: dict[str, range], result: Arrangement, split: str) -> Iterator[ShardRow]:
    """Yield the images of a split, in the items' order."""
    nowhere = ("", 0)
    for path, items in parts.items():
        if not any(result.places.get(item, nowhere)[0] == split for item in items):
            continue
        for row in staging.read_part(store, path):
            home, label = result.places.get(row["item"], nowhere)
            if home == split:
                told = {name: row[name] for name in ("sha256", "png", "width", "height", "thumbnail")}
                yield ShardRow(id=source.items[row["item"]].id, label=label, **told)


def _index(rows: list[ShardRow], places: list[Place], split: str, path: str) -> pa.Table:
    entries = []
    for row, place in zip(rows, places, strict=True):
        told = {name: getattr(row, name) for name in ("id", "label", "sha256", "width", "height", "thumbnail")}
        told["stored_sha256"] = hashlib.sha256(row.png).hexdigest()
        entries.append(told | place._asdict() | {"split": split, "file": path})
    return pa.Table.from_pylist(entries, schema=INDEX_SCHEMA)


def put_once(store: Store, path: str, data: bytes) -> None:
    """Write an object that nobody may have written otherwise. Raises FileExistsError where somebody has.

    Two imports of one plan write the same bytes where they run the same versions on the same kind of processor. Where
    they do not, neither may replace what the other's record has the checksum of.
    """
    if not store.put_if_absent(path, data) and store.read(path) != data:
        raise FileExistsError(path)


def _span(rows: list[dict[str, int]], name: str) -> tuple[int, int]:
    values = [row[name] for row in rows]
    return min(values), max(values)
