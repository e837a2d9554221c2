"""One timed pass over a set, for the script of every contender; it needs nothing but NumPy and Pillow.

Such a script is a process of its own environment. It takes one JSON mapping a line on standard input and answers each
with one line: {"do": "write"} puts a folder of images into the bucket in the contender's own format, {"do": "read"}
reads the set once, from the network, and says how long that took.

Legend: H W pixels, C channels, N images of a batch.
"""

import io
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Settings = dict[str, Any]
Batch = Any  # of images: uint8 [N, H, W, C], an array or a tensor, or a list of encoded ones


def serve(read: Callable[[Settings], Iterable[Batch]], write: Callable[[Settings], None] | None = None) -> None:
    """Answer requests until standard input ends; `read` yields the batches of one pass."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        settings, result = json.loads(line), {}
        if settings["do"] == "read":
            result = timed(read(settings), settings.get("check", False))
        elif write and settings["do"] == "write":
            write(settings)
        print(json.dumps(result), file=answers, flush=True)


def timed(batches: Iterable[Batch | None], check: bool) -> dict[str, Any]:
    """Return seconds from the start to the first batch and in all, the number of images and, to `check`, their digest.

    A contender that yields None first says that the set is open: "opened" are the seconds up to there, else 0.
    """
    start = _memory("VmRSS")
    began = time.perf_counter()
    opened = first = 0.0
    images, digest = 0, 0
    for batch in batches:
        if batch is None:
            opened = time.perf_counter() - began
            continue
        first = first or time.perf_counter() - began
        images += len(batch)
        if check:
            digest = (digest + sum(map(checksum, batch))) % 2**64
    return {
        "seconds": time.perf_counter() - began,
        "opened": opened,
        "first": first,
        "images": images,
        "digest": digest,
        "grown_mib": _memory("VmHWM") - start,
    }


def _memory(name: str) -> float:
    """Return a figure of this process's memory, MiB: VmRSS is what it has now, VmHWM the most it had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def checksum(image: Any) -> int:
    """Return a checksum of one image, encoded or [H, W, C]; their sum does not depend on the order of images."""
    return zlib.crc32(image if isinstance(image, bytes | memoryview) else np.ascontiguousarray(image))


def decode(png: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels of an encoded image, uint8 [H, W, C]."""
    return np.asarray(Image.open(io.BytesIO(png)))


def encoded(folder: str) -> Iterator[bytes]:
    """Yield the encoded images below a folder in the order of their names."""
    for path in sorted(Path(folder).rglob("*.png"), key=lambda path: path.name):
        yield path.read_bytes()
