"""Ours: a pass over a whole set as evaluation makes it, with or without decoding, nothing kept on this node's disk."""

import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from passes import Settings, serve

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.streaming import stream_encoded, stream_pixels
from hydramix_dist.store import s3  # noqa: F401 - imported at the store's first request otherwise


def read(settings: Settings) -> Iterator[Any]:
    """Yield the batches of one pass: encoded images, or uint8 [N, H, W, C] (a view of [N, C, H, W])."""
    os.environ["HYDRAMIX_STORE"] = json.dumps({"cache": None, "requests": settings["requests"]})
    if "budget_mib" in settings:
        _limit_memory(settings["budget_mib"])
    images = Dataset.open(settings["url"])
    split, rows = images.part("train"), range(len(images.ids("train")))
    yield None
    if settings["decode"]:
        for _, x_NCHW in stream_pixels(split, rows, images.side):
            yield x_NCHW.permute(0, 2, 3, 1)
    else:
        for _, pngs in stream_encoded(split, rows):
            yield pngs


def _limit_memory(mib: int) -> None:
    """Let this process have so much more than it has now, of all memory that it may write; the system refuses more."""
    threading.stack_size(2**20)  # stacks count as a whole, and by default each is 8 MiB
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = int(status["VmData"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (now + (mib << 20),) * 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pa.array([])  # imports pandas where that is installed
    serve(read)
