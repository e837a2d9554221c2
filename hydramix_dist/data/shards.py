"""Parquet objects whose binary values can be read one by one: each value's byte range is known.

Values are stored plain (no compression, no dictionary: PNG does not shrink), so a value lies in the file as it is, and
one ranged read of `length` bytes at `offset` gives it. The image shards follow Hugging Face's image convention.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from mmap import mmap
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

# A shard ends at whichever comes first: a reader of the whole set holds a few shards in memory.
ROWS_PER_SHARD, SHARD_BYTES = 8192, 16 * 2**20
# So does a row group: other Parquet readers fetch, check and unpack one as a whole, and a few images out of it should
# not cost much more than themselves. Its half kilobyte in the footer is nothing beside 1 MiB; 256 small images are
# enough to make it little beside them.
ROWS_PER_GROUP, GROUP_BYTES = 256, 2**20
_BESIDE_ROWS = 2**20  # of a shard's bytes, for headers, footer and the names of the classes: ample


class Place(NamedTuple):
    """Where a value lies: row group, row of the file, and byte range in the file."""

    row_group: int
    row: int
    offset: int
    length: int


class ShardRow(NamedTuple):
    """One image of a shard, and what the index alone tells of it: the original's size in pixels, the thumbnail."""

    id: str
    label: int
    sha256: str
    png: bytes
    width: int = 0
    height: int = 0
    thumbnail: bytes = b""

    @property
    def size(self) -> int:
        """Return about what the row takes in a shard: the id stands in it twice, and numbers and lengths beside."""
        return len(self.png) + 2 * len(self.id.encode()) + len(self.sha256) + 40


def by_shard(rows: Iterable[ShardRow]) -> Iterator[list[ShardRow]]:
    """Yield the rows of each shard, in order: as many as may be in one, at least one."""
    shard: list[ShardRow] = []
    size = _BESIDE_ROWS
    for row in rows:
        if shard and (len(shard) == ROWS_PER_SHARD or size + row.size > SHARD_BYTES):
            yield shard
            shard, size = [], _BESIDE_ROWS
        shard.append(row)
        size += row.size
    if shard:
        yield shard


def image_shard(rows: Sequence[ShardRow], classes: Sequence[str]) -> tuple[bytes, list[Place]]:
    """Return a shard's bytes and the place of each image's PNG in it."""
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64()), ("id", pa.string()), ("sha256", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": _features(classes)}})},
    )

    def group(span: slice) -> pa.Table:
        ids = pa.array([row.id for row in rows[span]], pa.string())
        pngs = pa.array([row.png for row in rows[span]], pa.binary())
        images = pa.StructArray.from_arrays([pngs, ids], fields=list(image_type))
        labels, digests = ([getattr(row, name) for row in rows[span]] for name in ("label", "sha256"))
        return pa.table([images, pa.array(labels), ids, pa.array(digests)], schema=schema)

    return _written(schema, group, "image.bytes", [row.png for row in rows])


def _features(classes: Sequence[str]) -> dict[str, object]:
    text = {"dtype": "string", "_type": "Value"}
    return {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "id": text,
        "sha256": text,
    }


def with_places(table: pa.Table, column: str, values: Sequence[bytes]) -> tuple[bytes, list[Place]]:
    """Return a table as Parquet bytes, and the place of each value of its binary column (a dotted path) in them."""
    return _written(table.schema, lambda span: table.slice(span.start, span.stop - span.start), column, values)


def _written(
    schema: pa.Schema, group: Callable[[slice], pa.Table], column: str, values: Sequence[bytes]
) -> tuple[bytes, list[Place]]:
    """Return Parquet bytes made of one group of rows after the other, so that they are held once beside the rows."""
    # Room for all of it from the start: a buffer that grows may be held three times over. Room that is not written to
    # takes no memory, and what is given away at the end is the buffer itself.
    sink = io.BytesIO(bytes(sum(map(len, values)) + 512 * len(values) + _BESIDE_ROWS))
    with pq.ParquetWriter(
        sink,
        schema,
        compression="none",
        use_dictionary=False,
        column_encoding={column: "PLAIN"},
        write_statistics=False,  # smallest and largest image would be written again in headers and footer
        write_page_checksum=True,
    ) as writer:
        for span in _groups(values):
            writer.write_table(group(span))
    sink.truncate()
    data = sink.getvalue()
    return data, _find(data, column, values)


def _groups(values: Sequence[bytes]) -> Iterator[slice]:
    start, size = 0, 0
    for row, value in enumerate(values):
        if row > start and (row - start == ROWS_PER_GROUP or size + len(value) > GROUP_BYTES):
            yield slice(start, row)
            start, size = row, 0
        size += len(value)
    yield slice(start, len(values))


def _find(data: bytes, column: str, values: Sequence[bytes]) -> list[Place]:
    """Return the values' places by searching each one, after the one before it, in its own column chunk."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    places: list[Place] = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(names.index(column))
        position, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        for _ in range(metadata.row_group(group).num_rows):
            value = values[len(places)]
            # A plain value follows its own length as four bytes; searching both finds no look-alike inside another.
            found = data.find(len(value).to_bytes(4, "little") + value, position, end)
            if found < 0:
                raise RuntimeError(f"row {len(places)} is not stored plain in the Parquet file")
            position = found + 4 + len(value)
            places.append(Place(group, len(places), found + 4, len(value)))
    return places


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as compressed Parquet bytes with page checksums, for indexes."""
    sink = io.BytesIO()  # gives its bytes away without a copy
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_table(data: bytes | mmap) -> pa.Table:
    """Return the table in Parquet bytes, its page checksums verified."""
    # One thread: pyarrow's pools now and then abort a short process at its end ("terminate called without an active
    # exception", seen in 3 of 10 runs), and these tables are small.
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False).read(
        use_threads=False
    )
