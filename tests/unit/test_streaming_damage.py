"""What is damaged in a set, or on the way from it, is read again or named; nothing damaged is handed on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from streamed_sets import encoded, in_bucket

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data import streaming
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

SEGMENTS = SegmentSettings()
WHOLE, APART = range(60), [3, 20, 41]


@pytest.mark.parametrize("rows", [WHOLE, APART], ids=["whole", "apart"])
def test_a_byte_that_flips_once_anywhere_is_read_again(rows: Any, remote_set: str, proxied: FaultProxy) -> None:
    met: set[str] = set()

    def once(path: str) -> bool:
        new = path not in met
        met.add(path)
        return new

    def all_of_it() -> tuple[list[bytes], Any]:
        data = Dataset.open(remote_set)
        return encoded(data, rows), data.segments(list(rows), 32, SEGMENTS).tolist()

    expected = all_of_it()
    proxied.clear()
    proxied.faults.flip = once
    assert all_of_it() == expected
    flipped = {request.path.rsplit("/", 1)[-1] for request in proxied.requests if request.fault == "flip"}
    assert {"manifest.json", "index.parquet", "train-00001.parquet"} < flipped and len(flipped) >= 6


def test_a_byte_that_always_flips_is_one_error(remote_set: str, proxied: FaultProxy) -> None:
    data = Dataset.open(remote_set)
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
def damageable(request: pytest.FixtureRequest, small_set: Path, tmp_path: Path) -> tuple[Dataset, Store]:
    """The small set, opened, and its store, on each kind of storage."""
    url = str(tmp_path / "set")
    if request.param == "disk":
        shutil.copytree(small_set, url)
    else:
        url = in_bucket(small_set, request.getfixturevalue("bucket"))
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


def test_an_image_that_was_recorded_broken_is_named(small_set: Path, tmp_path: Path) -> None:
    """Checksums that fit say nothing of what was broken when they were taken."""
    data = Dataset.open(str(shutil.copytree(small_set, tmp_path / "set")))
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match=r"train-00000\.parquet is damaged: image 'train/a/005\.png' cannot be decoded"),
    ):
        patch.setattr(streaming, "_read_block", lambda split, block: [memoryview(b"no png")] * len(block.rows))
        data.images("train", [5], 32)
