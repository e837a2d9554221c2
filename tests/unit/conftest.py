"""Makes the shared fixtures known to the tests of this folder."""

from fixtures import data_url, dataset, finished_pilot, image_folder, tiny_disk
from s3_fixtures import configured, s3_store
from streamed_sets import large_set, remote_set, small_pngs, small_set, uncached

__all__ = [
    "configured",
    "data_url",
    "dataset",
    "finished_pilot",
    "image_folder",
    "large_set",
    "remote_set",
    "s3_store",
    "small_pngs",
    "small_set",
    "tiny_disk",
    "uncached",
]
