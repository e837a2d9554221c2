"""Images of a set, in order, with bounded memory: what comes next is read while this is used.

One way for all: an N-shot subset, a whole split, one worker's part of it. Rows are cut into blocks. A shard of which
a good part is wanted, or that is small beside so many reads, is read and checked as a whole; rows that lie apart are
read by their byte ranges, those of a block side by side. The order is the index's own: a row stands where the import
put it, whoever reads it, so that every image has one number on any number of workers.

Legend: n images of a block, C channels, H W pixels.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from hydramix_dist.data.decode import Refusal, read_png, resized
from hydramix_dist.data.fetch import Piece, damaged, read_pieces, read_whole
from hydramix_dist.data.manifest import FileRecord, Manifest
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.store import Store
from hydramix_dist.store.traffic import traffic

R = TypeVar("R")
Rows = npt.NDArray[np.int64]

_AHEAD = 3  # blocks being read while one is used
_DENSE = 0.5  # share of a shard's bytes from which on the whole of it is read
_READ_BYTES = (
    16 * 2**10
)  # unwanted bytes worth a read less; it costs 2 ms, in which a server here gives fifty times this
_BLOCK_BYTES, _BLOCK_ROWS = 16 * 2**20, 1024  # of rows that are read one by one
_PIXELS_BYTES = 16 * 2**20  # of decoded images that are yielded together
_JOBS = 4  # for each decoding thread, of what is decoded together: none waits long for the last one


@dataclass(frozen=True)
class Split:
    """Where the images of one split lie: its part of the index, and the shards with their checksums."""

    store: Store
    table: pa.Table
    files: dict[str, FileRecord]

    @classmethod
    def of(cls, store: Store, manifest: Manifest, table: pa.Table) -> "Split":
        """Return a split from a set's record and the split's rows of its index."""
        return cls(store, table, {file.path: file for file in manifest.files})


def stream_encoded(split: Split, rows: Sequence[int] | Rows) -> Iterator[tuple[Rows, list[memoryview]]]:
    """Yield (rows [n], their stored PNGs) block by block, checked; rows come in ascending order.

    Raises UserError naming the file, and the image where it was read by itself, where one is missing or damaged.
    """
    blocks = _blocks(split, np.sort(np.asarray(rows, np.int64)))
    pending: deque[tuple[Rows, Future[list[memoryview]]]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="read-ahead") as threads:
        try:
            for block in blocks:
                pending.append((block.rows, threads.submit(_read_block, split, block)))
                if len(pending) > _AHEAD:
                    ready, encoded = pending.popleft()
                    yield ready, _awaited(encoded)
            while pending:
                ready, encoded = pending.popleft()
                yield ready, _awaited(encoded)
        finally:
            for _, future in pending:
                future.cancel()


def stream_pixels(split: Split, rows: Sequence[int] | Rows, side: int) -> Iterator[tuple[Rows, Tensor]]:
    """Yield (rows [n], uint8 images [n, 3, side, side]), resized bilinearly where `side` is not the stored one.

    What is yielded has at most 16 MiB; the next is decoded while it is used. Errors as in `stream_encoded`.
    """
    together = max(1, _PIXELS_BYTES // (3 * side * side))
    cores = usable_cores()
    waiting: deque[tuple[Rows, npt.NDArray[np.uint8], list[Future[None]]]] = deque()
    with ThreadPoolExecutor(cores, thread_name_prefix="decode") as threads:
        for block_rows, encoded in stream_encoded(split, rows):
            for first in range(0, len(encoded), together):
                chosen, pngs = block_rows[first : first + together], encoded[first : first + together]
                x_nHWC = np.empty((len(pngs), side, side, 3), np.uint8)
                each = -(-len(pngs) // (_JOBS * cores))
                jobs = [
                    threads.submit(_decode, split, chosen, pngs, x_nHWC, range(i, min(i + each, len(pngs))))
                    for i in range(0, len(pngs), each)
                ]
                waiting.append((chosen, x_nHWC, jobs))
                if len(waiting) > 1:
                    yield _decoded(*waiting.popleft())
        while waiting:
            yield _decoded(*waiting.popleft())


def _decoded(rows: Rows, x_nHWC: npt.NDArray[np.uint8], jobs: list[Future[None]]) -> tuple[Rows, Tensor]:
    for job in jobs:
        _awaited(job)
    return rows, torch.from_numpy(x_nHWC).permute(0, 3, 1, 2)


def _awaited(future: Future[R]) -> R:
    """Return a result; the time it is waited for counts as a stall."""
    began = time.monotonic()
    try:
        return future.result()
    finally:
        traffic.count(stall_seconds=time.monotonic() - began)


@dataclass(frozen=True)
class _Block:
    rows: Rows
    shard: str | None  # read as a whole; None: the rows one by one


def _blocks(split: Split, rows: Rows) -> Iterator[_Block]:
    """Yield the blocks of ascending rows: dense shards alone, others together up to a block's size."""
    if not len(rows):
        return
    lengths = np.asarray(split.table["length"].to_numpy())[rows]
    codes = split.table["file"].combine_chunks().dictionary_encode()
    files, names = np.asarray(codes.indices.to_numpy())[rows], codes.dictionary.to_pylist()
    cuts = np.flatnonzero(np.diff(files)) + 1
    apart: list[npt.NDArray[np.int64]] = []
    for group in np.split(np.arange(len(rows)), cuts):
        name = names[files[group[0]]]
        size = split.files[name].bytes
        reads = 1 + np.count_nonzero(np.diff(rows[group]) > 1)
        if lengths[group].sum() >= min(_DENSE * size, size - reads * _READ_BYTES):
            yield from _apart(rows, lengths, apart)
            apart = []
            yield _Block(rows[group], name)
        else:
            apart.append(group)
    yield from _apart(rows, lengths, apart)


def _apart(rows: Rows, lengths: Rows, groups: list[Rows]) -> Iterator[_Block]:
    if not groups:
        return
    positions = np.concatenate(groups)
    # A sum: the larger of the two would let bytes pile up in a block while rows are ahead, and the other way round.
    number = np.cumsum(lengths[positions]) // _BLOCK_BYTES + np.arange(len(positions)) // _BLOCK_ROWS
    for block in np.split(positions, np.flatnonzero(np.diff(number)) + 1):
        yield _Block(rows[block], None)


def _read_block(split: Split, block: _Block) -> list[memoryview]:
    places = split.table.select(["offset", "length"]).take(pa.array(block.rows))
    offsets, lengths = places["offset"].to_pylist(), places["length"].to_pylist()
    if block.shard is not None:
        whole = memoryview(read_whole(split.store, split.files[block.shard]))
        return [whole[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]
    names = split.table.select(["file", "stored_sha256", "id"]).take(pa.array(block.rows)).to_pylist()
    pieces = [
        Piece(row["file"], offset, length, row["stored_sha256"], f"image '{row['id']}'")
        for row, offset, length in zip(names, offsets, lengths, strict=True)
    ]
    return [memoryview(data) for data in read_pieces(split.store, pieces)]


def _decode(
    split: Split, rows: Rows, encoded: list[memoryview], x_nHWC: npt.NDArray[np.uint8], positions: range
) -> None:
    side = x_nHWC.shape[1]
    for position in positions:
        try:
            x_nHWC[position] = resized(read_png(encoded[position]), side)
        except Refusal as error:  # its bytes are those recorded: the record was made of a broken file
            row = int(rows[position])
            file, name = split.table["file"][row].as_py(), split.table["id"][row].as_py()
            raise damaged(split.store, file, f"image '{name}' cannot be decoded") from error
