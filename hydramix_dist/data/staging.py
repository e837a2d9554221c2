"""The first half of an import: every item decoded once, by all cores, into parts that a later attempt finds again.

A part holds the outcome (a stored image or a refusal) of a fixed range of items. Parts lie under a folder named by the
plan, so an interrupted import goes on after the last whole part, and another plan never sees them.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hydramix_dist.data.decode import Payload, Refusal, StoredImage, prepare
from hydramix_dist.data.manifest import Fit
from hydramix_dist.data.pool import Workers
from hydramix_dist.data.shards import read_table, table_bytes
from hydramix_dist.data.sources import Item, Source
from hydramix_dist.store.store import Store

FOLDER = "import"
ITEMS_PER_PART = 1024
_BATCH_BYTES = 2**18  # enough work for a worker not to wait for the next, little enough to hold many of them

_SCHEMA = pa.schema(
    [
        ("item", pa.int64()),
        ("reason", pa.string()),  # null for an image that came in
        ("sha256", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("thumbnail", pa.binary()),
        ("png", pa.binary()),
    ]
)

Outcome = StoredImage | str
_Job = tuple[int, list[Payload | Refusal], int, Fit]


def stage(
    store: Store,
    source: Source,
    *,
    plan: str,
    side: int,
    fit: Fit,
    workers: Workers,
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Return the paths of all parts, in the items' order, after making those that are absent."""
    total = len(source.items)
    # The pixels of a resize may change with Pillow, so parts of another version do not count.
    paths = [
        f"{FOLDER}/{plan[:16]}-pillow-{version('pillow')}/part-{number:05d}.parquet"
        for number in range(-(-total // ITEMS_PER_PART))
    ]
    there = set(store.list(FOLDER))
    absent = [number for number, path in enumerate(paths) if path not in there]
    done = sum(_size(number, total) for number in range(len(paths)) if number not in absent)
    outcomes: list[Outcome] = []
    for number, batch in workers.ordered_map(prepare_batch, _jobs(source, absent, side, fit)):
        outcomes.extend(batch)
        done += len(batch)
        if len(outcomes) == _size(number, total):
            store.put(paths[number], _part(number, outcomes))
            outcomes = []
        progress("images", done, total)
    return paths


def read_outcomes(store: Store, path: str) -> pa.Table:
    """Return a part without its pixels: item, reason, sha256, width, height."""
    with store.open(path) as file:
        return pq.ParquetFile(file, pre_buffer=False).read(_SCHEMA.names[:5], use_threads=False)


def read_part(store: Store, path: str) -> pa.Table:
    """Return a whole part, its page checksums verified."""
    return read_table(store.read(path))


def _size(number: int, total: int) -> int:
    return min(ITEMS_PER_PART, total - number * ITEMS_PER_PART)


def _jobs(source: Source, parts: list[int], side: int, fit: Fit) -> Iterator[_Job]:
    for number in parts:
        first = number * ITEMS_PER_PART
        batch: list[Payload | Refusal] = []
        size = 0
        for item in source.items[first : first + ITEMS_PER_PART]:
            payload = read_item(item)
            batch.append(payload)
            size += _bytes(payload)
            if size >= _BATCH_BYTES:
                yield number, batch, side, fit
                batch, size = [], 0
        if batch:
            yield number, batch, side, fit


def _bytes(payload: Payload | Refusal) -> int:
    if isinstance(payload, Refusal):
        return 0
    return payload.nbytes if isinstance(payload, np.ndarray) else len(payload)


def read_item(item: Item) -> Payload | Refusal:
    """Return what the source gives for an item, or the refusal it raised."""
    try:
        return item.read()
    except Refusal as refusal:
        return refusal


def prepare_batch(job: _Job) -> tuple[int, list[Outcome]]:
    """Return the part's number and each item's outcome; this is what a worker process runs."""
    number, payloads, side, fit = job
    return number, [_outcome(payload, side, fit) for payload in payloads]


def _outcome(payload: Payload | Refusal, side: int, fit: Fit) -> Outcome:
    if isinstance(payload, Refusal):
        return str(payload)
    try:
        return prepare(payload, side, fit)
    except Refusal as refusal:
        return str(refusal)


def _part(number: int, outcomes: list[Outcome]) -> bytes:
    rows = []
    for position, outcome in enumerate(outcomes):
        row: dict[str, object] = dict.fromkeys(_SCHEMA.names)
        row["item"] = number * ITEMS_PER_PART + position
        row |= {"reason": outcome} if isinstance(outcome, str) else vars(outcome)
        rows.append(row)
    return table_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))
