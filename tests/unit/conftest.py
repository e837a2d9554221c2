"""Makes the shared fixtures known to the tests of this folder."""

from fixtures import data_url, dataset, finished_pilot, image_folder, tiny_disk
from s3_fixtures import configured, s3_store

__all__ = ["configured", "data_url", "dataset", "finished_pilot", "image_folder", "s3_store", "tiny_disk"]
