"""Parquet objects whose binary values can be read one by one: each value's byte range is known.

Values are stored plain (no compression, no dictionary: PNG does not shrink), so a value lies in the file as it is, and
one ranged read of `length` bytes at `offset` gives it. The image shards follow Hugging Face's image convention.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 256
ROWS_PER_SHARD = 8192


class Place(NamedTuple):
    """Where a value lies: row group, row of the file, and byte range in the file."""

    row_group: int
    row: int
    offset: int
    length: int


class ShardRow(NamedTuple):
    """One image of a shard."""

    id: str
    label: int
    sha256: str
    png: bytes


def image_shard(rows: Sequence[ShardRow], classes: Sequence[str]) -> tuple[bytes, list[Place]]:
    """Return a shard's bytes and the place of each image's PNG in it."""
    pngs = [row.png for row in rows]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64()), ("id", pa.string()), ("sha256", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": _features(classes)}})},
    )
    images = pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.array([row.id for row in rows], pa.string())], fields=list(image_type)
    )
    columns = [images, *(pa.array([getattr(row, name) for row in rows]) for name in ("label", "id", "sha256"))]
    return with_places(pa.table(columns, schema=schema), "image.bytes", pngs)


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
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression="none",
        use_dictionary=False,
        column_encoding={column: "PLAIN"},
        write_statistics=False,  # smallest and largest image would be written again in headers and footer
        write_page_checksum=True,
    )
    data = bytes(sink.getvalue())
    return data, _find(data, column, values)


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
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_table(data: bytes) -> pa.Table:
    """Return the table in Parquet bytes, its page checksums verified."""
    # One thread: pyarrow's pools now and then abort a short process at its end ("terminate called without an active
    # exception", seen in 3 of 10 runs), and these tables are small.
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True, pre_buffer=False).read(
        use_threads=False
    )
