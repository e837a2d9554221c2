"""Reading many byte ranges of a store at once: neighbours in one read, reads side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hydramix_dist.config.store import store_settings
from hydramix_dist.store.store import Store

# Between two values stored one after the other lie a few bytes of Parquet; a wider gap is another image.
_GAP = 256
_LONGEST = 8 * 2**20


class Range(NamedTuple):
    """`length` bytes from `offset` of one file."""

    file: str
    offset: int
    length: int


def read_ranges(store: Store, ranges: Sequence[Range]) -> list[bytes]:
    """Return the bytes of each range, in the order asked. Raises FileNotFoundError."""
    runs = _runs(ranges)
    with ThreadPoolExecutor(min(len(runs), store_settings().requests) or 1) as threads:
        blocks = list(threads.map(lambda run: store.read(*run[0]), runs))
    result = [b""] * len(ranges)
    for (whole, members), block in zip(runs, blocks, strict=True):
        for member in members:
            start = ranges[member].offset - whole.offset
            result[member] = block[start : start + ranges[member].length]
    return result


def _runs(ranges: Sequence[Range]) -> list[tuple[Range, list[int]]]:
    """Return the reads to make, each with the positions of the ranges inside it."""
    runs: list[tuple[Range, list[int]]] = []
    for position in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        file, offset, length = ranges[position]
        if runs:
            whole, members = runs[-1]
            end = max(whole.offset + whole.length, offset + length)
            near = whole.file == file and offset - (whole.offset + whole.length) <= _GAP
            if near and end - whole.offset <= _LONGEST:
                members.append(position)
                runs[-1] = Range(file, whole.offset, end - whole.offset), members
                continue
        runs.append((Range(file, offset, length), [position]))
    return runs
