"""The first half of an import: every item decoded once, by all cores, into parts that a later attempt finds again.

A part holds the outcome (a stored image or a refusal) of a fixed range of items. Parts lie under a folder named by the
plan, so an interrupted import goes on after the last whole part, and another plan never sees them. A part that is there
is never written again: of two imports of one plan, all that comes after is made from the same bytes.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hydramix_dist.data.decode import Payload, Refusal, StoredImage, prepare
from hydramix_dist.data.manifest import Fit
from hydramix_dist.data.pool import Workers
from hydramix_dist.data.shards import read_table, table_bytes
from hydramix_dist.data.sources import Source
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

FOLDER = "import"
_ITEMS_PER_PART, _PART_BYTES = 1024, 16 * 2**20  # whichever is less; a part is built in memory
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
_Job = tuple[str, list[Payload | Refusal], int, Fit]


def stage(
    store: Store,
    source: Source,
    digests: Sequence[bytes],
    *,
    plan: str,
    side: int,
    fit: Fit,
    workers: Workers,
    progress: Callable[[str, int, int], None],
) -> dict[str, range]:
    """Return the items of each part by its path, in order, after making the parts that are absent.

    Raises ChangedError where an item is not what its digest in `digests` says.
    """
    total = len(source.items)
    size = max(1, min(_ITEMS_PER_PART, _PART_BYTES // (3 * side * side)))  # as if no image could be compressed
    ranges = [range(first, min(first + size, total)) for first in range(0, total, size)]
    # The pixels of a resize may change with Pillow, so parts of another version do not count.
    folder = f"{FOLDER}/{plan[:16]}-pillow-{version('pillow')}-by-{size}"
    parts = {f"{folder}/part-{number:05d}.parquet": items for number, items in enumerate(ranges)}
    there = set(store.list(FOLDER))
    absent = {path: items for path, items in parts.items() if path not in there}
    done = total - sum(map(len, absent.values()))
    outcomes: list[Outcome] = []
    with closing(_jobs(source, digests, absent, side, fit)) as jobs:
        for path, batch in workers.ordered_map(prepare_batch, jobs):
            outcomes.extend(batch)
            done += len(batch)
            if len(outcomes) == len(parts[path]):
                store.put_if_absent(path, _part(parts[path], outcomes))
                outcomes = []
            progress("images", done, total)
    return parts


def read_outcomes(store: Store, path: str) -> pa.Table:
    """Return a part without its pixels: item, reason, sha256, width, height. Raises UserError where it is damaged."""

    def read() -> pa.Table:
        with store.open(path) as file:
            part = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            return part.read(_SCHEMA.names[:5], use_threads=False)

    return _intact(store, path, read)


def read_part(store: Store, path: str) -> Iterator[dict[str, Any]]:
    """Yield a part's rows, few of them unpacked at once. Raises UserError where it is damaged."""
    for rows in _intact(store, path, lambda: read_table(store.read(path))).to_batches(max_chunksize=64):
        yield from rows.to_pylist()


def _intact(store: Store, path: str, read: Callable[[], pa.Table], again: bool = True) -> pa.Table:
    """Return what a part's pages hold; where a checksum does not match, it may have been damaged on its way."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:  # pyarrow's words for a wrong checksum, and for a broken file
        if again:
            return _intact(store, path, read, again=False)
        raise UserError(
            f"{store.path(path)} is damaged ({error}); delete {store.path(FOLDER)} and run the same command again"
        ) from error


def _jobs(source: Source, digests: Sequence[bytes], parts: dict[str, range], side: int, fit: Fit) -> Generator[_Job]:
    """Yield work of about _BATCH_BYTES each, none across two parts. Their items are read in one go over all parts."""
    rows = [item for items in parts.values() for item in items]
    with closing(source.known_payloads(rows, digests)) as payloads:
        for path, items in parts.items():
            batch: list[Payload | Refusal] = []
            size = 0
            for payload in islice(payloads, len(items)):
                batch.append(payload)
                size += _bytes(payload)
                if size >= _BATCH_BYTES:
                    yield path, batch, side, fit
                    batch, size = [], 0
            if batch:
                yield path, batch, side, fit


def _bytes(payload: Payload | Refusal) -> int:
    if isinstance(payload, Refusal):
        return 0
    return payload.nbytes if isinstance(payload, np.ndarray) else len(payload)


def prepare_batch(job: _Job) -> tuple[str, list[Outcome]]:
    """Return the part's path and each item's outcome; this is what a worker process runs."""
    path, payloads, side, fit = job
    return path, [_outcome(payload, side, fit) for payload in payloads]


def _outcome(payload: Payload | Refusal, side: int, fit: Fit) -> Outcome:
    if isinstance(payload, Refusal):
        return str(payload)
    try:
        return prepare(payload, side, fit)
    except Refusal as refusal:
        return str(refusal)


def _part(items: range, outcomes: Sequence[Outcome]) -> bytes:
    rows = []
    for item, outcome in zip(items, outcomes, strict=True):
        row: dict[str, object] = dict.fromkeys(_SCHEMA.names)
        row["item"] = item
        row |= {"reason": outcome} if isinstance(outcome, str) else vars(outcome)
        rows.append(row)
    return table_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))
