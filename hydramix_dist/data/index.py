"""The index of a data set: one row an image, train before test, in official order, with its place in the shards."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("file", pa.string()),
        ("row_group", pa.int64()),
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.string()),  # of the decoded pixels: the same however they are stored
        ("stored_sha256", pa.string()),  # of the stored bytes, so that they can be checked without decoding
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("thumbnail", pa.binary()),
    ]
)


def fingerprint_of(classes: Sequence[str], index: pa.Table) -> str:
    """Return the hex sha256 over the class names and each image's split, id, label and pixel digest, in order.

    The storage plays no part in it: the same images, labels and order have one fingerprint wherever they lie.
    """
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    columns = (index[name].to_pylist() for name in ("split", "id", "label", "sha256"))
    for row in zip(*columns, strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
