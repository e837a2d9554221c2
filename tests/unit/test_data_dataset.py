"""Reading touches what it needs, damage is named, duplicates are found, segment maps are made once."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import class_files, edited, encoded, picture, write_tree
from PIL import Image, ImageEnhance

from hydramix_dist.config.schema import SegmentSettings
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.decode import thumbnail
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.neighbours import THRESHOLD, near_pairs
from hydramix_dist.data.overview import describe
from hydramix_dist.data.segment_maps import MapKey
from hydramix_dist.data.segmentation import default_side, segment
from hydramix_dist.data.shots import load_shots
from hydramix_dist.data.verify import verify
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

SETTINGS = SegmentSettings()
FILES = class_files(["a", "b"], 20, "train/", 32) | class_files(["a", "b"], 3, "test/", 32, first=500)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    import_dataset(write_tree(root / "src", FILES), str(root / "dst"))
    return root / "dst"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(made, tmp_path / "dst"))


class CountingStore(Store):
    """A store that notes which bytes were read."""

    reads: list[tuple[str, int, int | None]]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        self.reads.append((path, offset, length))
        return super().read(path, offset, length)


def counted(path: Path) -> tuple[Dataset, CountingStore]:
    data = Dataset.open(str(path))
    store = CountingStore(path)
    store.reads = []
    data.store = store
    return data, store


def test_images_come_in_the_order_asked_and_at_the_side_asked(made: Path) -> None:
    data = Dataset.open(str(made))
    rows = [39, 3, 3, 21]
    native = data.images("train", rows, 32)
    assert native.dtype == torch.uint8 and native.shape == (4, 3, 32, 32) and native.is_contiguous()
    expected = [picture(seed, 32) for seed in (1019, 3, 3, 1001)]
    assert np.array_equal(native.permute(0, 2, 3, 1).numpy(), expected)
    enlarged = data.images("train", [3], 64)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(enlarged, Image.fromarray(picture(3, 32)).resize((64, 64), Image.Resampling.BILINEAR))


def test_shots_read_only_their_own_bytes(made: Path) -> None:
    data, store = counted(made)
    load_shots(data, [5, 17, 30], 64, SETTINGS)
    wanted = [read for read in store.reads if read[0] == "train-00000.parquet"]
    pngs = [len(encoded(picture(seed, 32))) for seed in (5, 17, 1010)]
    assert sorted(length for _, _, length in wanted if length) == sorted(pngs)
    maps = [read for read in store.reads if read[0].startswith("segments") and "index" not in read[0]]
    size = sum(path.stat().st_size for path in made.glob("segments/*[0-9a-f].parquet"))
    assert all(length is not None for path, _, length in maps if path.endswith(".parquet"))
    assert sum(length or 0 for _, _, length in maps) < size / 5


def test_neighbouring_images_are_one_read(made: Path) -> None:
    data, store = counted(made)
    data.images("train", range(40), 32)
    assert len(store.reads) == 1


def test_a_damaged_image_is_named_by_reading_and_by_verify(copied: Path) -> None:
    assert verify(str(copied)) == []
    data = Dataset.open(str(copied))
    place = data._tables["train"].slice(7, 1).to_pylist()[0]

    def flip(content: bytearray) -> None:
        content[place["offset"] + place["length"] // 2] ^= 1

    edited(copied / "train-00000.parquet", flip)
    with pytest.raises(UserError, match=r"train-00000\.parquet is damaged: image 'train/a/007\.png'"):
        data.images("train", [6, 7], 32)
    assert len(data.images("train", [6, 8], 32)) == 2
    assert [damage.path for damage in verify(str(copied))] == ["train-00000.parquet"]


def test_verify_names_missing_cut_and_damaged_files(copied: Path) -> None:
    stem = MapKey(Dataset.open(str(copied)).fingerprint, "train", 64, SETTINGS).stem
    (copied / "test-00000.parquet").unlink()
    edited(copied / "index.parquet", lambda content: content.__delitem__(slice(-3, None)))
    edited(copied / f"{stem}-00000.parquet", lambda content: content.__setitem__(40, content[40] ^ 1))
    problems = {damage.path: damage.problem for damage in verify(str(copied))}
    assert set(problems) == {"test-00000.parquet", "index.parquet", f"{stem}-00000.parquet"}
    assert problems["test-00000.parquet"] == "missing" and "bytes" in problems["index.parquet"]
    with pytest.raises(UserError, match=r"index\.parquet is damaged"):
        Dataset.open(str(copied))


def test_verify_sees_an_edited_record(copied: Path) -> None:
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace('"a",', '"z",', 1))
    assert [damage.path for damage in verify(str(copied))] == ["manifest.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"schema_version": 2', '"schema_version": 3'), "schema version 3"),
        (('"schema_version": 2', '"schema_version": 1'), "older version .* import the source again"),
        (('"classes"', '"clas"'), "damaged"),
    ],
)
def test_newer_and_broken_records_are_answers(copied: Path, change: tuple[str, str], words: str) -> None:
    text = (copied / "manifest.json").read_text()
    assert change[0] in text
    (copied / "manifest.json").write_text(text.replace(*change, 1))
    with pytest.raises(UserError, match=words):
        Dataset.open(str(copied))


def test_no_data_set_is_an_answer(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no data set"):
            Dataset.open(str(path))


# ---- segment maps


def test_segments_are_those_of_the_unaugmented_image_and_numbered_in_order(made: Path) -> None:
    maps = Dataset.open(str(made)).segments([4, 0], 64, SETTINGS)
    assert maps.dtype == torch.int32 and maps.shape == (2, 64, 64)
    for found, seed in zip(maps.numpy(), (4, 0), strict=True):
        assert np.array_equal(found, segment(picture(seed, 32), 64, SETTINGS))
        labels, first = np.unique(found, return_index=True)
        assert labels.tolist() == list(range(len(labels))) and len(labels) > 1
        assert first.tolist() == sorted(first.tolist())  # numbered by first pixel in raster order


def test_another_side_or_setting_adds_an_object_and_touches_nothing_else(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    data = Dataset.open(str(copied))
    assert data.segments([0], 32, SETTINGS).shape == (1, 32, 32)
    coarse = data.segments([0], 64, SegmentSettings(scale=400.0, min_size=400))
    assert coarse.max() < data.segments([0], 64, SETTINGS).max()
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    assert before.items() <= after.items() and len(after) == len(before) + 6
    Dataset.open(str(copied)).segments([1], 32, SETTINGS)
    assert after == {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}


def test_damaged_map_is_named_and_made_again_when_deleted(copied: Path) -> None:
    data = Dataset.open(str(copied))
    stem = MapKey(data.fingerprint, "train", 64, SETTINGS).stem
    whole = data.segments([3], 64, SETTINGS)

    def wipe(content: bytearray) -> None:
        content[: len(content) // 2] = bytes(len(content) // 2)

    edited(copied / f"{stem}-00000.parquet", wipe)
    with pytest.raises(UserError, match=r"damaged: the map of 'train/a/000\.png' is not what was written; delete"):
        Dataset.open(str(copied)).segments([0], 64, SETTINGS)
    shutil.rmtree(copied / "segments")
    assert torch.equal(Dataset.open(str(copied)).segments([3], 64, SETTINGS), whole)


@pytest.mark.parametrize(("stored", "side"), [(32, 64), (64, 64), (96, 96)])
def test_default_segment_side(stored: int, side: int) -> None:
    assert default_side(stored) == side


# ---- duplicates and other warnings


def variants(image: Image.Image) -> dict[str, Image.Image]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return {
        "jpeg": Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"),
        "brighter": image.point(lambda value: min(255, value + 12)),
        "flatter": ImageEnhance.Contrast(image).enhance(0.8),
        "smaller": image.resize((16, 16), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC),
    }


def test_duplicates_are_told_apart_and_leaks_are_named(tmp_path: Path) -> None:
    files = dict(FILES)
    files["train/a/copy.png"] = files["train/a/001.png"]
    files["test/b/leak.png"] = files["train/b/001.png"]
    files["test/a/strange.png"] = files["train/b/002.png"]
    for number, (name, image) in enumerate(variants(Image.fromarray(picture(1003, 32))).items()):
        split = "train" if number % 2 else "test"
        files[f"{split}/b/{name}.png"] = encoded(image)
    overview = describe(
        Dataset.open(import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None).url)
    )
    found = {(twin.first[1], twin.second[1]): twin for twin in overview.twins}
    assert found["train/a/001.png", "train/a/copy.png"].exact
    assert found["train/b/001.png", "test/b/leak.png"].exact
    assert not found["train/b/002.png", "test/a/strange.png"].same_class
    near = {pair for pair, twin in found.items() if not twin.exact and "train/b/003.png" in pair}
    assert near == {
        ("train/b/003.png", f"{split}/b/{name}.png")
        for split, name in (("test", "jpeg"), ("train", "brighter"), ("test", "flatter"), ("train", "smaller"))
    }
    texts = [warning.text for warning in overview.warnings if "duplicates" in warning.kind]
    assert len(texts) == 4 and "1 pair of exact duplicates inside the training split" in texts[0]
    assert "2 pairs of exact duplicates between train and test" in texts[2] and "1 of them with different" in texts[2]


def test_different_images_give_no_warning(made: Path) -> None:
    overview = describe(Dataset.open(str(made)))
    assert overview.warnings == () and overview.twins == ()
    assert [(entry.name, entry.train, entry.test) for entry in overview.classes] == [("a", 20, 3), ("b", 20, 3)]


def test_flat_textures_do_not_flood() -> None:
    rng = np.random.default_rng(0)
    grains = [Image.fromarray(rng.normal(128, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)) for _ in range(200)]
    blank = [Image.new("RGB", (64, 64), (value, value, value)) for value in range(50)]
    flat = np.stack([np.frombuffer(thumbnail(image), np.uint8) for image in (*grains, *blank)])
    assert near_pairs(flat) == []


def test_many_images_alike_give_no_more_pairs_than_images() -> None:
    rng = np.random.default_rng(2)
    scenes = rng.integers(0, 256, (3, 256))
    frames = np.clip(np.repeat(scenes, 100, 0) + rng.normal(0, 2, (300, 256)), 0, 255).astype(np.uint8)
    within = [(pair.first, pair.second) for pair in near_pairs(frames)]
    assert within == [(row // 100 * 100, row) for row in range(300) if row % 100]
    across = [(pair.first, pair.second) for pair in near_pairs(frames, frames[::10])]
    assert across == [(row // 10 * 100, row) for row in range(30)]


def test_the_quick_bound_loses_no_pair() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (300, 256))
    noisy = np.clip(base + rng.normal(0, 1, base.shape) * rng.uniform(0, 30, (300, 1)), 0, 255)
    first, second = base.astype(np.uint8), noisy.astype(np.uint8)
    exact = np.corrcoef(first, second)[:300, 300:]
    near_border = np.abs(exact - THRESHOLD) < 1e-5
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero((exact >= THRESHOLD) & ~near_border), strict=True)}
    found = {(pair.first, pair.second) for pair in near_pairs(first, second)}
    assert 20 < len(expected) < 280 and expected <= found
    assert all(exact[i, j] > THRESHOLD - 1e-5 for i, j in found)


def test_imbalance_and_small_classes_are_said(tmp_path: Path) -> None:
    files = class_files(["a"], 9, "train/") | class_files(["b"], 3, "train/", first=60) | class_files(["a"], 2, "test/")
    src = write_tree(tmp_path / "src", files)
    overview = describe(Dataset.open(import_dataset(src, str(tmp_path / "dst"), segments=None).url), shots=[3, 5])
    texts = {warning.kind: warning.text for warning in overview.warnings}
    assert "'a' has 9 training images, 'b' 3" in texts["imbalance"]
    assert texts["few images"].startswith("fewer than 5 training images: 'b' (3)")
    assert any("class 'b' has no test image" in warning.text for warning in overview.warnings)


@pytest.mark.shared
def test_real_packs_raise_the_right_warnings(tmp_path: Path, shared_data: Path) -> None:
    steel = import_dataset(shared_data / "neu_det_200.zip", str(tmp_path / "steel"), segments=None)
    tiles = import_dataset(shared_data / "magnetic_tile_160.zip", str(tmp_path / "tiles"), segments=None)
    assert steel.side == tiles.side == 64 and not steel.refused and not tiles.refused
    flat = describe(Dataset.open(steel.url)).twins
    assert len(flat) < 10  # of 45,000 pairs of textures
    twins = describe(Dataset.open(tiles.url), [20])
    inside = [twin for twin in twins.twins if twin.second[0] == "train"]
    assert len(inside) > 100  # one tile under several exposures
    assert len(inside) == len(twins.twins)  # the pack keeps each tile on one side
    assert {"near duplicates", "imbalance", "few images"} <= {warning.kind for warning in twins.warnings}
