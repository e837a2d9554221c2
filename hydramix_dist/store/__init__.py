"""Every path of the program: files behind fsspec, and run folders in them."""

from hydramix_dist.store.store import Store, split_target

__all__ = ["Store", "split_target"]
