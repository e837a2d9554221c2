"""Two sets that the tests of streaming share, made once: a small one in four shards, a large one of noise."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import class_files, write_tree
from fault_proxy import FaultProxy

from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data import shards
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.streaming import stream_encoded
from hydramix_dist.store import Store


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 60 training images in four shards, with their maps, on this disk."""
    root = tmp_path_factory.mktemp("data")
    files = class_files(["a", "b"], 30, "train/", 32) | class_files(["a", "b"], 3, "test/", 32, first=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 16)
        import_dataset(write_tree(root / "src", files), str(root / "dst"), segment_side=32)
    assert len(list((root / "dst").glob("train-*.parquet"))) == 4
    return root / "dst"


@pytest.fixture(scope="session")
def small_pngs(small_set: Path) -> list[bytes]:
    """The small set's training PNGs as any reader of Parquet finds them."""
    tables = [pq.read_table(path) for path in sorted(small_set.glob("train-*.parquet"))]
    return [image["bytes"] for table in tables for image in table["image"].to_pylist()]


@pytest.fixture(scope="session")
def large_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 10,000 training images of 10 classes in several shards, and 600 test images, on this disk."""
    root, noise = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for name, count in [*((f"data_batch_{number}.bin", 2000) for number in range(1, 6)), ("test_batch.bin", 600)]:
        records = noise.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (root / name).write_bytes(records.tobytes())
    folder = tmp_path_factory.mktemp("large-set") / "dst"
    import_dataset(root, str(folder), segments=None)
    assert len(list(folder.glob("train-*.parquet"))) > 1
    return folder


def in_bucket(folder: Path, url: str) -> str:
    """Copy a data set into the bucket, past all code that imports or reads sets; return its URL."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        Store(url).put(str(path.relative_to(folder)), path.read_bytes())
    return url


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "{cache: null}")


@pytest.fixture
def remote_set(small_set: Path, bucket: str, uncached: None, proxied: FaultProxy) -> str:
    """The small set in the bucket, which is reached through the proxy and not cached."""
    url = in_bucket(small_set, bucket)
    proxied.clear()
    return url


def encoded(data: Dataset, rows: Any) -> list[bytes]:
    return [bytes(png) for _, block in stream_encoded(data.part("train"), rows) for png in block]
