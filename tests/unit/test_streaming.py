"""A set is read in order, whole or in parts, as it was written, ahead of its use and with few requests."""

import gc
import json
import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import tiny
import torch
from data_files import edited, picture
from fault_proxy import FaultProxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from streamed_sets import encoded, in_bucket

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data import streaming
from hydramix_dist.data.dataset import Dataset, Reference
from hydramix_dist.data.shots import draw_subset, load_shots
from hydramix_dist.data.streaming import stream_encoded
from hydramix_dist.store.traffic import traffic
from hydramix_dist.training.scoring import part_of

SEEDS = [*range(30), *range(1000, 1030)]  # of the small set's training pictures, in their official order
SEGMENTS = SegmentSettings()


# ---- order and pixels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(0, 59), max_size=90),
    world_size=st.integers(1, 70),
    most_rows=st.integers(1, 40),
    most_bytes=st.integers(1, 20_000),
    dense=st.sampled_from([0.0, 0.3, 0.6, 9.0]),
    a_read=st.sampled_from([0, 500, 10**9]),
)
def test_rows_come_once_and_in_order_on_any_split_into_parts(
    small_set: Path,
    small_pngs: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    rows: list[int],
    world_size: int,
    most_rows: int,
    most_bytes: int,
    dense: float,
    a_read: int,
) -> None:
    drawn = {"_BLOCK_ROWS": most_rows, "_BLOCK_BYTES": most_bytes, "_DENSE": dense, "_READ_BYTES": a_read}
    for name, value in drawn.items():
        monkeypatch.setattr(streaming, name, value)
    data = Dataset.open(str(small_set))
    asked = [row for block, _ in stream_encoded(data.part("train"), rows) for row in block.tolist()]
    assert asked == sorted(rows) and encoded(data, rows) == [small_pngs[row] for row in asked]
    parts = [part_of(60, rank, world_size).tolist() for rank in range(world_size)]
    assert {len(part) for part in parts} == {-(-60 // world_size)}, "all ranks call a shared network equally often"
    assert [png for part in parts for png in encoded(data, part)][:60] == small_pngs


def test_a_shard_is_read_whole_where_that_is_less_than_its_reads(
    small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that follow on each other are one read, so only those that lie apart count."""
    part = Dataset.open(str(small_set)).part("train")
    shard = part.table["file"][0].as_py()
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", part.files[shard].bytes // 5)
    shards = lambda rows: [block.shard for block in streaming._blocks(part, np.asarray(rows))]  # noqa: E731
    assert shards([0, 2, 4, 6]) == [shard] and shards([0, 2, 4]) == [None] and shards([0, 1, 2, 3, 4]) == [None]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.sampled_from([1, 10, 1000]), min_size=1, max_size=80),
    most_rows=st.integers(1, 20),
    most_bytes=st.integers(1, 3000),
)
def test_a_block_of_rows_holds_neither_more_rows_nor_more_bytes(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], most_rows: int, most_bytes: int
) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", most_rows)
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", most_bytes)
    rows, sizes = np.arange(len(lengths)), np.array(lengths)
    blocks = list(streaming._apart(rows, sizes, [rows]))
    assert [row for block in blocks for row in block.rows.tolist()] == rows.tolist()
    for block in blocks:
        assert len(block.rows) <= most_rows
        assert sizes[block.rows[1:]].sum() <= most_bytes  # one image more may be as large as it is


def test_pixels_are_those_that_pillow_finds_in_the_source(small_set: Path) -> None:
    data, rows = Dataset.open(str(small_set)), [59, 0, 17, 17, 31]
    for side in (32, 16, 50):
        expected = [
            np.asarray(Image.fromarray(picture(seed, 32)).resize((side, side), Image.Resampling.BILINEAR))
            for seed in SEEDS
        ]
        whole = torch.cat([images for _, images in data.stream("train", range(60), side)])
        assert np.array_equal(whole.permute(0, 2, 3, 1).numpy(), expected)
        few = data.images("train", rows, side)
        assert np.array_equal(few.permute(0, 2, 3, 1).numpy(), [expected[row] for row in rows])
    assert list(data.stream("train", [], 32)) == [] and data.images("train", [], 32).shape == (0, 3, 32, 32)


def test_a_whole_shard_is_one_read_and_rows_that_lie_apart_are_read_by_themselves(
    remote_set: str, proxied: FaultProxy, small_pngs: list[bytes]
) -> None:
    data = Dataset.open(remote_set)
    proxied.clear()
    assert encoded(data, range(60)) == small_pngs
    assert sorted(request.path.rsplit("/", 1)[-1] for request in proxied.requests) == [
        f"train-{number:05d}.parquet" for number in range(4)
    ]
    proxied.clear()
    assert encoded(data, [3, 20, 22, 59]) == [small_pngs[row] for row in (3, 20, 22, 59)]
    assert sorted(request.sent for request in proxied.requests) == sorted(
        len(small_pngs[row]) for row in (3, 20, 22, 59)
    )


# ---- how much at a time


def test_no_more_is_read_than_three_blocks_ahead(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    begun, read = [0], streaming._read_block

    def counted(*arguments: Any) -> Any:
        begun[0] += 1
        return read(*arguments)

    monkeypatch.setattr(streaming, "_read_block", counted)
    threads = threading.active_count()
    blocks: Any = stream_encoded(Dataset.open(str(small_set)).part("train"), range(60))
    for used, _ in enumerate(blocks, start=1):
        tiny.wait_for(lambda: begun[0] >= min(used + 3, 20), seconds=5)  # noqa: B023 - asked at once
        time.sleep(0.01)
        assert begun[0] == min(used + 3, 20)
        if used == 5:
            break
    blocks.close()  # whoever leaves early
    assert begun[0] <= 8 and threading.active_count() == threads


def test_memory_does_not_grow_with_the_set(large_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set of about 32 MB in shards, read as rows in blocks of about 1 MB, a few MB are held."""
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 320)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    data = Dataset.open(str(large_set))
    sizes = np.asarray(data.part("train").table["length"].to_numpy())
    largest = max(sizes[first : first + 320].sum() for first in range(0, 10_000, 320))
    gc.collect()
    tracemalloc.start()
    try:
        total = 0
        for rows, pixels in data.stream("train", range(10_000), 32):
            total += len(rows)
            del pixels
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two blocks being decoded and used, two being read, each with its joined reads, and the pixels of two.
    assert total == 10_000 and peak < 11 * largest < sizes.sum() / 2, (peak, largest, sizes.sum())


# ---- few requests


def test_five_images_of_each_class_of_ten_thousand_cost_fifty_small_reads_side_by_side(
    large_set: Path, bucket: str, uncached: None, proxied: FaultProxy
) -> None:
    url = in_bucket(large_set, bucket)
    proxied.clear()
    before = traffic.values()
    data = Dataset.open(url)
    opening, proxied.faults.gather, proxied.faults.latency = len(proxied.requests), 16, 0.05
    shots = load_shots(data, draw_subset(data.labels("train"), 5, 0), 32, None)
    after = traffic.values()
    assert torch.bincount(shots.labels_N).tolist() == [5] * 10
    assert opening == 2 and len(proxied.requests) <= 60  # manifest and index
    beside_index = sum(request.sent for request in proxied.requests if not request.path.endswith("/index.parquet"))
    assert beside_index < 0.02 * sum(path.stat().st_size for path in large_set.glob("*-*.parquet"))
    assert proxied.most_at_once == 16  # as many as one process is allowed
    assert after["requests"] - before["requests"] == len(proxied.requests)
    assert after["read_bytes"] - before["read_bytes"] == sum(request.sent for request in proxied.requests)


def trial(environment: dict[str, str], reference: Reference) -> tuple[torch.Tensor, ...]:
    """Return what a trial reads of the small set: shots with their maps, and all test images."""
    os.environ.update(environment)
    data = reference.open()
    shots = load_shots(data, [3, 20, 41], 32, SEGMENTS)
    assert shots.segments_NHW is not None
    return shots.images_NCHW, shots.segments_NHW, *(images for _, images in data.stream("test", range(6), 32))


def test_a_second_process_with_the_same_cache_asks_nothing_of_the_network(
    small_set: Path, bucket: str, proxied: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_bucket(small_set, bucket)
    proxied.clear()
    reference = Dataset.open(url).reference

    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == VARIABLE}
    (first,) = ranks.run(1, trial, environment, reference)
    asked = len(proxied.requests)
    proxied.faults.refuse = lambda method, path: True
    (second,) = ranks.run(1, trial, environment, reference)
    assert len(proxied.requests) == asked > 5
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    # Without the digest, as a command that begins: the manifest alone, for the set may be another one.
    proxied.faults.refuse = lambda method, path: not path.endswith("/manifest.json")
    assert Dataset.open(url).images("train", [3, 20, 41], 32).shape == (3, 3, 32, 32)
    assert len(proxied.requests) == asked + 1
    # Another cache has to ask for all of it again.
    proxied.faults.refuse = lambda method, path: False
    monkeypatch.setenv(VARIABLE, json.dumps({"cache": str(tmp_path / "empty")}))
    reference.open().images("train", [3, 20, 41], 32)
    assert len(proxied.requests) == asked + 1 + 2 + 3


def test_a_cache_damaged_on_disk_is_mended_from_the_store(small_set: Path, bucket: str, proxied: FaultProxy) -> None:
    url = in_bucket(small_set, bucket)
    data = Dataset.open(url)
    whole, few = encoded(data, range(60)), encoded(data, [3, 20])
    folder = Path(json.loads(os.environ[VARIABLE])["cache"])
    kept = [path for path in folder.glob("??/*") if path.suffix != ".name"]
    assert len(kept) == 4 + 2 + 2  # shards, images, manifest and index
    for path in kept:
        edited(path, lambda content: content.__setitem__(len(content) // 2, content[len(content) // 2] ^ 1))
    proxied.clear()
    again = Dataset.open(url)
    assert encoded(again, range(60)) == whole and encoded(again, [3, 20]) == few
    assert len(proxied.requests) == len(kept)
    proxied.clear()
    assert encoded(Dataset.open(url), range(60)) == whole and len(proxied.requests) == 1
