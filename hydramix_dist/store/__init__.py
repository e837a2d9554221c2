"""Every path of the program: files at any fsspec URL, and run folders in them."""

from hydramix_dist.store.store import Store

__all__ = ["Store"]
