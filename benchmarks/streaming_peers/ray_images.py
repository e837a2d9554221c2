"""Plain Ray Data: `read_images` on loose objects, through pyarrow's S3 file system."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.fs
import ray
from passes import Settings, serve


def read(settings: Settings) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the batches of one pass."""
    scheme, address = os.environ["AWS_ENDPOINT_URL"].split("://")
    bucket = pyarrow.fs.S3FileSystem(endpoint_override=address, scheme=scheme, region=os.environ["AWS_REGION"])
    images = ray.data.read_images(settings["path"], filesystem=bucket, override_num_blocks=settings["blocks"])
    for batch in images.iter_batches(
        batch_size=settings["batch"], batch_format="numpy", prefetch_batches=settings["prefetch"]
    ):
        yield batch["image"]


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(1000, override_num_blocks=8).materialize()  # its worker processes are up, and know Ray Data
    serve(read)
