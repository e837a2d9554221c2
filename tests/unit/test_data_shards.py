"""Shards are bounded in rows and bytes, cost little more memory than their size, and any Parquet reader reads them."""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import class_files, write_tree
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.data import shards
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.shards import ShardRow, by_shard, image_shard

MIB = 2**20


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds that a few short rows reach."""
    with monkeypatch.context() as patch:
        for name, value in (("ROWS_PER_SHARD", 9), ("SHARD_BYTES", 2000), ("ROWS_PER_GROUP", 4), ("GROUP_BYTES", 300)):
            patch.setattr(shards, name, value)
        patch.setattr(shards, "_BESIDE_ROWS", 0)
        yield


@pytest.mark.usefixtures("small_bounds")
@given(st.lists(st.integers(0, 700), max_size=40))
def test_rows_come_out_in_order_whole_and_bounded(sizes: list[int]) -> None:
    rows = [ShardRow(f"{n}", n % 2, "0" * 64, bytes([n]) * size) for n, size in enumerate(sizes)]
    parts = list(by_shard(rows))
    assert [row for part in parts for row in part] == rows
    for part, following in zip(parts, [*parts[1:], None], strict=False):
        size = sum(row.size for row in part)
        assert len(part) == 1 or (len(part) <= 9 and size <= 2000)
        assert following is None or len(part) == 9 or size + following[0].size > 2000  # as many as may be

    tables = []
    for part in parts:
        data, places = image_shard(part, ["x", "y"])
        assert [data[p.offset : p.offset + p.length] for p in places] == [row.png for row in part]
        record = pq.read_metadata(io.BytesIO(data))
        groups = [[p.length for p in places if p.row_group == n] for n in range(record.num_row_groups)]
        assert [len(group) for group in groups] == [record.row_group(n).num_rows for n in range(len(groups))]
        assert all(len(group) == 1 or (len(group) <= 4 and sum(group) <= 300) for group in groups)
        tables.append(pq.read_table(io.BytesIO(data), page_checksum_verification=True))
    read = [row for table in tables for row in table.to_pylist()]
    assert read == [
        {"image": {"bytes": row.png, "path": row.id}, "label": row.label, "id": row.id, "sha256": row.sha256}
        for row in rows
    ]
    assert all(b"huggingface" in table.schema.metadata for table in tables)


@pytest.mark.parametrize(
    ("size", "count", "per_shard", "per_group"), [(300_000, 250, 52, 3), (1500, 20_000, 8192, 256)]
)
def test_a_shard_is_at_most_16_mebibytes_and_8192_rows(size: int, count: int, per_shard: int, per_group: int) -> None:
    noise = np.random.default_rng(0).bytes(size + count)
    row = lambda n: ShardRow(f"train/some class/{n:07d}.jpg", 0, "0" * 64, noise[n : n + size])  # noqa: E731
    parts = list(by_shard(row(n) for n in range(count)))
    assert [len(part) for part in parts[:-1]] == [per_shard] * (count // per_shard)
    data, places = image_shard(parts[0], ["only"])
    assert len(data) <= 16 * MIB and len(data) > min(15 * MIB, size * per_shard)
    assert max(sum(place.row_group == n for place in places) for n in range(places[-1].row_group + 1)) == per_group
    assert (places[-1].row_group + 1) * per_group >= per_shard


MEMORY = """
import numpy as np
from hydramix_dist.data.shards import ShardRow, image_shard
def most():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
noise = np.random.default_rng(0).bytes(300_000 * 108)
image_shard([ShardRow("x", 0, "0" * 64, noise[:1000])], ["only"])  # what the libraries take once
rows = [ShardRow("x", 0, "0" * 64, noise[n * 300_000 : (n + 1) * 300_000]) for n in range(108)]
before = most()
data, places = image_shard(rows, ["only"])
print((most() - before) / (len(data) / 2**20))
"""


def test_writing_a_shard_takes_its_own_size_beside_its_rows() -> None:
    # Arrow's own allocator keeps 32 MiB once, however much is written.
    exact = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=exact)
    assert float(done.stdout) < 1.5


RAY = """
import json, sys
import ray
ray.init(num_cpus=1, include_dashboard=False, logging_level="error", _temp_dir=sys.argv[2])
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_parquet([f"{sys.argv[1]}/train-00000.parquet", f"{sys.argv[1]}/train-00001.parquet"]).take_all()
print(json.dumps([[row["id"], row["label"], row["image"]["path"], len(row["image"]["bytes"])] for row in rows]))
"""


@pytest.mark.full
def test_ray_data_reads_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 6)
    src = write_tree(tmp_path / "src", class_files(["a", "b"], 5, "train/") | class_files(["a", "b"], 1, "test/"))
    import_dataset(src, str(tmp_path / "dst"), segments=None, workers=1)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # its sockets' paths have a limit
        command = [sys.executable, "-c", RAY, str(tmp_path / "dst"), short]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    data = Dataset.open(str(tmp_path / "dst"))
    lengths = data._tables["train"]["length"].to_pylist()
    expected = list(zip(data.ids("train"), data.labels("train").tolist(), data.ids("train"), lengths, strict=True))
    assert sorted(map(tuple, json.loads(done.stdout.splitlines()[-1]))) == sorted(expected)
