"""MosaicML Streaming: the set in MDS shards, read by a StreamingDataset behind torch's DataLoader."""

from collections.abc import Iterator
from typing import Any

import boto3  # noqa: F401 - imported at its first download otherwise, by each worker on its own
import numpy as np
import torch
from passes import Settings, decode, encoded, serve
from torch.utils.data import DataLoader

try:
    import torchvision  # noqa: F401 - the library imports it, and uses none of it here
except RuntimeError:
    # PyPI's wheels are built for CUDA; beside a CPU-only torch the operators they describe have to be there first.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from streaming import MDSWriter, StreamingDataset


class Images(StreamingDataset):  # type: ignore[misc]
    """The images as pixels; stored as bytes, so that they are the very same as every contender's."""

    def __getitem__(self, at: Any) -> Any:
        return decode(super().__getitem__(at)["image"])


def stack(images: list[Any]) -> torch.Tensor:
    """Return a batch, uint8 [N, H, W, C]."""
    return torch.from_numpy(np.stack(images))


def write(settings: Settings) -> None:
    """Put the images into shards of a given size, in a local folder: the caller uploads them."""
    size = settings["shard_mib"] << 20
    with MDSWriter(out=settings["out"], columns={"image": "bytes"}, size_limit=size) as writer:
        for png in encoded(settings["folder"]):
            writer.write({"image": png})


def read(settings: Settings) -> Iterator[torch.Tensor]:
    """Yield the batches of one epoch, its local copy empty before."""
    workers, batch = settings["workers"], settings["batch"]
    images = Images(
        remote=settings["url"],
        local=settings["scratch"],
        shuffle=False,
        batch_size=batch,
        predownload=settings["predownload_batches"] * batch,
    )
    for stream in images.streams:
        # The index came over a connection that the workers, forks of this process, would otherwise all go on using:
        # answers then reach the wrong worker, and a pass ends with broken images or hangs for a minute.
        stream._downloader.clean_up()
    options = {"prefetch_factor": settings["prefetch"]} if workers else {}
    yield from DataLoader(images, batch, num_workers=workers, collate_fn=stack, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(read, write)
