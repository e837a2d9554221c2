"""Ours: a pass over a whole set as evaluation makes it, with or without decoding, nothing kept on this node's disk."""

import json
import os
from collections.abc import Iterator
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
    images = Dataset.open(settings["url"])
    split, rows = images.part("train"), range(len(images.ids("train")))
    yield None
    if settings["decode"]:
        for _, x_NCHW in stream_pixels(split, rows, images.side):
            yield x_NCHW.permute(0, 2, 3, 1)
    else:
        for _, pngs in stream_encoded(split, rows):
            yield pngs


if __name__ == "__main__":
    torch.set_num_threads(1)
    pa.array([])  # imports pandas where that is installed
    serve(read)
