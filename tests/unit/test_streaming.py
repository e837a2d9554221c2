"""A set is read in order, whole or in parts, as it was written or not at all, and with few requests."""

import gc
import json
import os
import shutil
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ranks
import tiny
import torch
from data_files import class_files, edited, picture, write_tree
from fault_proxy import FaultProxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data import held_out, shards, streaming
from hydramix_dist.data.dataset import Dataset, Reference
from hydramix_dist.data.held_out import HeldOut, Streamed, load_held_out
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.shots import draw_subset, load_shots
from hydramix_dist.data.streaming import stream_encoded
from hydramix_dist.errors import UserError
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.store import Store
from hydramix_dist.store.traffic import traffic
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.scoring import part_of, predict_together

SEEDS = [*range(30), *range(1000, 1030)]  # of the small set's training pictures, in their official order
SEGMENTS = SegmentSettings()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 60 training images in four shards, with their maps, on this disk."""
    root = tmp_path_factory.mktemp("data")
    files = class_files(["a", "b"], 30, "train/", 32) | class_files(["a", "b"], 3, "test/", 32, first=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 16)
        import_dataset(write_tree(root / "src", files), str(root / "dst"), segment_side=32)
    assert len(list((root / "dst").glob("train-*.parquet"))) == 4
    return root / "dst"


@pytest.fixture(scope="module")
def stored(made: Path) -> list[bytes]:
    """The small set's training PNGs as any reader of Parquet finds them."""
    tables = [pq.read_table(path) for path in sorted(made.glob("train-*.parquet"))]
    return [image["bytes"] for table in tables for image in table["image"].to_pylist()]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 10,000 training images of 10 classes in several shards, and 600 test images, on this disk."""
    root, noise = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for name, count in [*((f"data_batch_{number}.bin", 2000) for number in range(1, 6)), ("test_batch.bin", 600)]:
        records = noise.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (root / name).write_bytes(records.tobytes())
    import_dataset(root, str(tmp_path_factory.mktemp("set") / "dst"), segments=None)
    folder = tmp_path_factory.getbasetemp() / "set0" / "dst"
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
def remote(made: Path, bucket: str, uncached: None, proxied: FaultProxy) -> str:
    """The small set in the bucket, which is reached through the proxy and not cached."""
    url = in_bucket(made, bucket)
    proxied.clear()
    return url


def encoded(data: Dataset, rows: Any) -> list[bytes]:
    return [bytes(png) for _, block in stream_encoded(data.part("train"), rows) for png in block]


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
    made: Path,
    stored: list[bytes],
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
    data = Dataset.open(str(made))
    asked = [row for block, _ in stream_encoded(data.part("train"), rows) for row in block.tolist()]
    assert asked == sorted(rows) and encoded(data, rows) == [stored[row] for row in asked]
    parts = [part_of(60, rank, world_size).tolist() for rank in range(world_size)]
    assert {len(part) for part in parts} == {-(-60 // world_size)}, "all ranks call a shared network equally often"
    assert [png for part in parts for png in encoded(data, part)][:60] == stored


def test_a_shard_is_read_whole_where_that_is_less_than_its_reads(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that follow on each other are one read, so only those that lie apart count."""
    part = Dataset.open(str(made)).part("train")
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


def test_pixels_are_those_that_pillow_finds_in_the_source(made: Path) -> None:
    data, rows = Dataset.open(str(made)), [59, 0, 17, 17, 31]
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
    remote: str, proxied: FaultProxy, stored: list[bytes]
) -> None:
    data = Dataset.open(remote)
    proxied.clear()
    assert encoded(data, range(60)) == stored
    assert sorted(request.path.rsplit("/", 1)[-1] for request in proxied.requests) == [
        f"train-{number:05d}.parquet" for number in range(4)
    ]
    proxied.clear()
    assert encoded(data, [3, 20, 22, 59]) == [stored[row] for row in (3, 20, 22, 59)]
    assert sorted(request.sent for request in proxied.requests) == sorted(len(stored[row]) for row in (3, 20, 22, 59))


# ---- how much at a time


def test_no_more_is_read_than_three_blocks_ahead(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    begun, read = [0], streaming._read_block

    def counted(*arguments: Any) -> Any:
        begun[0] += 1
        return read(*arguments)

    monkeypatch.setattr(streaming, "_read_block", counted)
    threads = threading.active_count()
    blocks: Any = stream_encoded(Dataset.open(str(made)).part("train"), range(60))
    for used, _ in enumerate(blocks, start=1):
        tiny.wait_for(lambda: begun[0] >= min(used + 3, 20), seconds=5)  # noqa: B023 - asked at once
        time.sleep(0.01)
        assert begun[0] == min(used + 3, 20)
        if used == 5:
            break
    blocks.close()  # whoever leaves early
    assert begun[0] <= 8 and threading.active_count() == threads


def test_memory_does_not_grow_with_the_set(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set of about 32 MB in shards, read as rows in blocks of about 1 MB, a few MB are held."""
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 320)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    data = Dataset.open(str(large))
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
    large: Path, bucket: str, uncached: None, proxied: FaultProxy
) -> None:
    url = in_bucket(large, bucket)
    proxied.clear()
    before = traffic.values()
    data = Dataset.open(url)
    opening, proxied.faults.latency = len(proxied.requests), 0.05
    shots = load_shots(data, draw_subset(data.labels("train"), 5, 0), 32, None)
    after = traffic.values()
    assert torch.bincount(shots.labels_N).tolist() == [5] * 10
    assert opening == 2 and len(proxied.requests) <= 60  # manifest and index
    beside_index = sum(request.sent for request in proxied.requests if not request.path.endswith("/index.parquet"))
    assert beside_index < 0.02 * sum(path.stat().st_size for path in large.glob("*-*.parquet"))
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
    made: Path, bucket: str, proxied: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_bucket(made, bucket)
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


def test_a_cache_damaged_on_disk_is_mended_from_the_store(made: Path, bucket: str, proxied: FaultProxy) -> None:
    url = in_bucket(made, bucket)
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


# ---- damage

WHOLE, APART = range(60), [3, 20, 41]


@pytest.mark.parametrize("rows", [WHOLE, APART], ids=["whole", "apart"])
def test_a_byte_that_flips_once_anywhere_is_read_again(rows: Any, remote: str, proxied: FaultProxy) -> None:
    met: set[str] = set()

    def once(path: str) -> bool:
        new = path not in met
        met.add(path)
        return new

    def all_of_it() -> tuple[list[bytes], Any]:
        data = Dataset.open(remote)
        return encoded(data, rows), data.segments(list(rows), 32, SEGMENTS).tolist()

    expected = all_of_it()
    proxied.clear()
    proxied.faults.flip = once
    assert all_of_it() == expected
    flipped = {request.path.rsplit("/", 1)[-1] for request in proxied.requests if request.fault == "flip"}
    assert {"manifest.json", "index.parquet", "train-00001.parquet"} < flipped and len(flipped) >= 6


def test_a_byte_that_always_flips_is_one_error(remote: str, proxied: FaultProxy) -> None:
    data = Dataset.open(remote)
    proxied.faults.flip = lambda path: path.endswith("train-00001.parquet")
    proxied.clear()
    with pytest.raises(UserError, match=r"train-00001\.parquet is damaged: its content is not what was written"):
        encoded(data, WHOLE)
    assert sum(request.fault == "flip" for request in proxied.requests) == 2
    proxied.clear()
    with pytest.raises(UserError, match=r"train-00001\.parquet is damaged: image 'train/a/020\.png' is not what was"):
        encoded(data, APART)
    assert sum(request.fault == "flip" for request in proxied.requests) == 2 and len(proxied.requests) == 4


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.service)])
def damageable(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> tuple[Dataset, Store]:
    """The small set, opened, and its store, on each kind of storage."""
    url = str(tmp_path / "set")
    if request.param == "disk":
        shutil.copytree(made, url)
    else:
        url = in_bucket(made, request.getfixturevalue("bucket"))
    request.getfixturevalue("monkeypatch").setenv(VARIABLE, "{cache: null}")
    return Dataset.open(url), Store(url)


@pytest.mark.parametrize("rows", [WHOLE, APART], ids=["whole", "apart"])
def test_a_missing_shard_is_named(rows: Any, damageable: tuple[Dataset, Store]) -> None:
    data, store = damageable
    store.delete("train-00001.parquet")
    with pytest.raises(UserError) as caught:
        encoded(data, rows)
    assert str(caught.value) == (
        f"{store.url}/train-00001.parquet is missing; see: hydramix data verify {store.url}, then import again into an "
        "empty folder"
    )
    assert encoded(data, range(16)) == encoded(Dataset.open(store.url), range(16))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_a_damaged_shard_is_named(damage: str, damageable: tuple[Dataset, Store]) -> None:
    data, store = damageable
    name, other = "train-00001.parquet", store.read("train-00002.parquet")
    body = store.read(name)
    first = int(data.part("train").table["offset"][16].as_py())
    changed = {"flipped": body[: first + 50] + bytes([body[first + 50] ^ 1]) + body[first + 51 :]}
    changed |= {"cut": body[: first + 100], "empty": b"", "another": other}
    store.put(name, changed[damage])
    whole = r"train-00001\.parquet is damaged: its content is not what was written; see: hydramix data verify"
    with pytest.raises(UserError, match=whole):
        encoded(data, WHOLE)
    with pytest.raises(UserError, match=r"train-00001\.parquet is damaged: image 'train/a/016\.png' is not what was"):
        encoded(data, [3, 16, 41])
    assert len(encoded(data, [3, 41])) == 2


def test_an_image_that_was_recorded_broken_is_named(made: Path, tmp_path: Path) -> None:
    """Checksums that fit say nothing of what was broken when they were taken."""
    data = Dataset.open(str(shutil.copytree(made, tmp_path / "set")))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match=r"train-00000\.parquet is damaged: image 'train/a/005\.png' cannot be decoded"),
    ):
        patch.setattr(streaming, "_read_block", lambda split, block: [memoryview(b"no png")] * len(block.rows))
        data.images("train", [5], 32)


# ---- evaluation


@pytest.fixture(scope="module")
def classifier_weights() -> dict[str, Any]:
    torch.manual_seed(0)
    return build_classifier(tiny.classifier_settings(), 10).state_dict()


def probabilities(url: str, rows: list[int], streamed: bool, weights: dict[str, Any], group: Any) -> torch.Tensor:
    """Return a classifier's answers on test images, held in memory or streamed."""
    data = Dataset.open(url)
    images = Streamed(data, "test", tuple(rows), 16) if streamed else data.images("test", rows, 16)
    network = build_classifier(tiny.classifier_settings(), 10)
    network.load_state_dict(weights)
    return predict_together(network, HeldOut(images, torch.from_numpy(data.labels("test")[rows])), group)


def on_a_rank(url: str, chosen: list[list[int]], weights: dict[str, Any]) -> list[list[torch.Tensor]]:
    group = DeepSpeedGroup(read_deepspeed("zero1"), torch.device("cpu"))
    return [[probabilities(url, rows, streamed, weights, group) for streamed in (False, True)] for rows in chosen]


ROWS = [row for row in range(600) if row % 7]  # 514, so that neither batches nor ranks come out even


def test_streamed_images_come_in_the_same_batches_as_held_ones(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", 77)
    monkeypatch.setattr(streaming, "_DENSE", 9.0)
    monkeypatch.setattr(streaming, "_READ_BYTES", 0)
    data = Dataset.open(str(large))
    in_memory = load_held_out(data, "test", ROWS, 24)
    monkeypatch.setattr(held_out, "_HELD_BYTES", 0)
    streamed = load_held_out(data, "test", ROWS, 24)
    assert isinstance(in_memory.images, torch.Tensor) and isinstance(streamed.images, Streamed)
    assert torch.equal(in_memory.labels_N, streamed.labels_N)
    for positions in (range(514), range(250), range(0), [3], [1, 5, 5, 5, 400], range(200, 514)):
        chosen = torch.tensor(list(positions), dtype=torch.int64)
        held, read = list(in_memory.batches(chosen)), list(streamed.batches(chosen))
        if len(chosen):
            assert [len(batch) for batch in held] == [len(batch) for batch in read]
            for mine, theirs in zip(held, read, strict=True):
                assert torch.equal(mine, theirs) and mine.stride() == theirs.stride()
        else:
            assert sum(map(len, held)) == sum(map(len, read)) == 0


def test_streamed_predictions_are_those_of_images_in_memory_on_one_rank_and_on_two(
    large: Path, classifier_weights: dict[str, Any]
) -> None:
    alone = [probabilities(str(large), ROWS, streamed, classifier_weights, tiny.ALONE) for streamed in (False, True)]
    assert alone[0].shape == (514, 10) and torch.equal(*alone)
    answers = ranks.run(2, on_a_rank, str(large), [ROWS, ROWS[:3]], classifier_weights)
    for (held, streamed), (few_held, few_streamed) in answers:
        assert torch.equal(held, streamed) and torch.equal(few_held, few_streamed)
        torch.testing.assert_close(held, alone[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(few_held, alone[0][:3], rtol=1e-5, atol=1e-6)
