"""Makes the shared fixtures known to the tests of this folder."""

from fixtures import data_url, dataset, finished_pilot, image_folder, tiny_disk

__all__ = ["data_url", "dataset", "finished_pilot", "image_folder", "tiny_disk"]
