"""WebDataset: the set in tar shards, fetched by curl from signed addresses, as the library does for any URL."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds
from passes import Settings, decode, encoded, serve


def stack(images: list[Any]) -> torch.Tensor:
    """Return a batch, uint8 [N, H, W, C]."""
    return torch.from_numpy(np.stack(images))


def write(settings: Settings) -> None:
    """Put the images into shards of a given size, in a local folder: the caller uploads them."""
    pattern, size = f"{settings['out']}/%05d.tar", settings["shard_mib"] << 20
    with wds.ShardWriter(pattern, maxcount=10**9, maxsize=size, verbose=0) as writer:
        for number, png in enumerate(encoded(settings["folder"])):
            writer.write({"__key__": f"{number:06d}", "png": png})


def read(settings: Settings) -> Iterator[torch.Tensor]:
    """Yield the batches of one epoch."""
    urls = [f"pipe:curl -s -f '{url}'" for url in settings["urls"]]
    images = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    if settings["decoder"] == "library":
        images = images.decode("rgb8").to_tuple("png")
    else:
        images = images.map(lambda sample: (decode(sample["png"]),))
    batches = images.batched(settings["batch"], collation_fn=lambda samples: stack([image for (image,) in samples]))
    options = {"prefetch_factor": settings["prefetch"]} if settings["workers"] else {}
    yield from wds.WebLoader(batches, batch_size=None, num_workers=settings["workers"], **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(read, write)
