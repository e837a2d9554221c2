"""The second half of an import: parts become shards, index and the record of them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

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
from hydramix_dist.data.shards import ROWS_PER_SHARD, ShardRow, image_shard, table_bytes
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


def write_objects(store: Store, source: Source, parts: list[str], choice: Choice) -> tuple[Manifest, pa.Table]:
    """Return the manifest (not written yet) and the index, after writing shards and index."""
    outcomes = pa.concat_tables([staging.read_outcomes(store, path) for path in parts]).to_pylist()
    came_in = [row for row in outcomes if row["reason"] is None]
    try:
        result = arrange(source, [Decoded(row["item"], row["sha256"]) for row in came_in], choice.holdout)
    except UserError:
        store.delete(staging.FOLDER)  # these images never become a data set: the folder is free for mended ones
        raise
    files, index = _write_shards(store, source, parts, result)
    index_data = table_bytes(index)
    store.put(INDEX, index_data)
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
    store: Store, source: Source, parts: list[str], result: Arrangement
) -> tuple[list[FileRecord], pa.Table]:
    files: list[FileRecord] = []
    index: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for number, rows in enumerate(_shards(store, parts, result, split)):
            path = f"{split}-{number:05d}.parquet"
            images = [
                ShardRow(source.items[row["item"]].id, result.places[row["item"]][1], row["sha256"], row["png"])
                for row in rows
            ]
            data, places = image_shard(images, result.classes)
            store.put(path, data)
            files.append(file_record(path, data))
            for row, image, place in zip(rows, images, places, strict=True):
                entry = {name: row[name] for name in ("sha256", "width", "height", "thumbnail")}
                entry |= {"id": image.id, "split": split, "label": image.label, "file": path}
                entry |= {"stored_sha256": hashlib.sha256(image.png).hexdigest()}
                index[split].append(entry | place._asdict())
    return files, pa.Table.from_pylist([row for split in SPLITS for row in index[split]], schema=INDEX_SCHEMA)


def _shards(store: Store, parts: list[str], result: Arrangement, split: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each shard of a split, in the items' order, holding one shard and one part in memory."""
    shard: list[dict[str, Any]] = []
    for path in parts:
        for row in staging.read_part(store, path).to_pylist():
            if result.places.get(row["item"], ("", 0))[0] == split:
                shard.append(row)
                if len(shard) == ROWS_PER_SHARD:
                    yield shard
                    shard = []
    if shard:
        yield shard


def _span(rows: list[dict[str, int]], name: str) -> tuple[int, int]:
    values = [row[name] for row in rows]
    return min(values), max(values)
