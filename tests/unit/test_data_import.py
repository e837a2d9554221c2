"""Import from end to end: what is stored, what is refused, and what an interruption costs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import class_files, encoded, picture, write_tree, zip_of
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.data.arrange import hold_out
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.decode import pixel_digest
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.pool import Workers
from hydramix_dist.data.shards import ROWS_PER_GROUP, ShardRow, image_shard
from hydramix_dist.errors import UserError

SPLIT = class_files(["a", "b"], 3, "train/") | class_files(["a", "b"], 2, "test/", first=500)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cifar_files(count: int) -> dict[str, bytes]:
    """CIFAR-10 binary files with `count` images in each of the six."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    rows = rng.integers(0, 256, (6, count, 3073), np.uint8)
    rows[:, :, 0] = np.arange(count) % 10
    return {name: rows[n].tobytes() for n, name in enumerate(names)}


def test_folder_comes_in_whole(tmp_path: Path) -> None:
    report = import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst"), licence="CC0")
    data = Dataset.open(report.url)
    assert report.counts == {"train": (3, 3), "test": (2, 2)} and report.side == 24 and not report.refused
    assert data.classes == ("a", "b") and data.manifest.licence == "CC0"
    assert data.ids("train") == tuple(sorted(name for name in SPLIT if name.startswith("train")))
    assert data.labels("test").tolist() == [0, 0, 1, 1]
    images = data.images("train", [4, 0], 24).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(images, [picture(1001), picture(0)])
    kinds = Counter(name.split("/")[0] for name in files_of(tmp_path / "dst"))
    assert kinds == {
        "manifest.json": 1,
        "index.parquet": 1,
        "train-00000.parquet": 1,
        "test-00000.parquet": 1,
        "segments": 3,
    }


def test_shards_follow_the_hugging_face_convention_and_carry_page_checksums(tmp_path: Path) -> None:
    import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst"), segments=None)
    path = tmp_path / "dst/train-00000.parquet"
    table = pq.read_table(path, page_checksum_verification=True)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": ["a", "b"]}
    first = table.to_pylist()[0]
    assert set(first) == {"image", "label", "id", "sha256"} and set(first["image"]) == {"bytes", "path"}
    assert first["sha256"] == pixel_digest(picture(0))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"IDAT") + 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=600))
def test_every_value_lies_where_its_place_says(values: list[bytes]) -> None:
    rows = [ShardRow(f"{number}", 0, "", value) for number, value in enumerate(values)]
    data, places = image_shard(rows, ["only"])
    assert [data[place.offset : place.offset + place.length] for place in places] == values
    assert [(place.row_group, place.row) for place in places] == [(n // ROWS_PER_GROUP, n) for n in range(len(values))]
    assert len({place.offset for place in places}) == len(values)


def test_large_values_over_many_pages_are_found() -> None:
    values = [bytes([number]) * 500_000 for number in range(12)]  # a page ends after a mebibyte
    data, places = image_shard([ShardRow("x", 0, "", value) for value in values], ["only"])
    assert [data[place.offset : place.offset + place.length] for place in places] == values


@pytest.mark.parametrize(
    ("sides", "expected"), [((40, 40), 40), ((96, 96), 96), ((97, 97), 64), ((40, 41), 64), ((7, 7), 64)]
)
def test_default_side(tmp_path: Path, sides: tuple[int, int], expected: int) -> None:
    files = class_files(["a"], 2, "train/", sides[0]) | class_files(["b"], 2, "train/", sides[1], first=9)
    files |= {name.replace("train", "test"): data for name, data in files.items()}
    report = import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None)
    assert report.side == expected


def test_refused_items_are_listed_with_reasons_and_the_rest_comes_in(tmp_path: Path) -> None:
    whole = encoded(picture(7, 64), "JPEG")
    extra = {
        "train/a/cut.jpg": whole[: len(whole) // 2],
        "train/a/text.png": b"hello",
        "train/a/anim.gif": encoded(picture(1), "GIF", save_all=True, append_images=[_image(2)]),
        "train/hollow/none.png": b"",
        "test/hollow/one.png": encoded(picture(3)),
    }
    report = import_dataset(write_tree(tmp_path / "src", SPLIT | extra), str(tmp_path / "dst"), segments=None)
    reasons = {entry.item: entry.reason for entry in report.refused}
    assert "truncated" in reasons["train/a/cut.jpg"] and "known format" in reasons["train/a/text.png"]
    assert "2 frames" in reasons["train/a/anim.gif"] and "train/hollow/none.png" in reasons
    assert "1 test images are left out" in reasons["class 'hollow'"]
    assert report.classes == ("a", "b") and report.counts == {"train": (3, 3), "test": (2, 2)}


def _image(seed: int) -> object:
    from PIL import Image

    return Image.fromarray(picture(seed))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/1.png": encoded(picture(1))}, "one readable image in all"),
        (class_files(["a"], 3), "nothing to classify"),
        ({"a/1.png": b"x", "b/1.png": b"x"}, "no readable image"),
        (class_files(["a", "b"], 1, "test/") | {"train/a/1.png": encoded(picture(1))}, "nothing to classify"),
    ],
)
def test_sources_without_a_task_are_answers(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"))
    assert not (tmp_path / "dst/manifest.json").exists()


def test_options_out_of_range_and_destination_inside_the_source_are_answers(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "src", SPLIT)
    for options in ({"size": 4}, {"holdout": 1.0}, {"segment_side": 5000}, {"workers": 0}):
        with pytest.raises(UserError, match=next(iter(options)).replace("_", " ")):
            import_dataset(src, str(tmp_path / "dst"), **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="inside the source"):
        import_dataset(src, str(src / "out"))


# ---- hold-out

Digests = st.lists(st.lists(st.sampled_from([f"{n:02d}" for n in range(20)]), min_size=1, max_size=12), min_size=1)


@given(Digests, st.floats(0.05, 0.95))
def test_holdout_never_parts_equal_images_and_leaves_training_images(classes: list[list[str]], share: float) -> None:
    tests = hold_out(classes, share)
    assert tests == hold_out([list(reversed(members)) for members in classes], share)
    for members in classes:
        others = {digest for other in classes if other is not members for digest in other}
        if len(set(members)) >= 2 and not others & set(members):
            held = sum(digest in tests for digest in members)
            assert 1 <= held < len(members)


def test_holdout_share_is_kept_where_all_images_differ() -> None:
    members = [pixel_digest(picture(n)) for n in range(40)]
    assert len(hold_out([members], 0.3)) == 12


def test_source_without_test_split_is_divided_and_says_so(tmp_path: Path) -> None:
    files = class_files(["a", "b"], 10)
    files["a/copy.png"] = files["a/000.png"]
    report = import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None)
    data = Dataset.open(report.url)
    assert data.manifest.holdout == 0.5 and "held out" in report.warnings[0]
    assert sorted((*data.ids("train"), *data.ids("test"))) == sorted(files)
    assert any({"a/copy.png", "a/000.png"} <= set(data.ids(split)) for split in ("train", "test"))


# ---- again, interrupted, elsewhere


def test_same_import_again_is_complete_and_another_one_is_refused(tmp_path: Path) -> None:
    src, dst = write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst")
    first = import_dataset(src, dst)
    before = files_of(tmp_path / "dst")
    again = import_dataset(src, dst)
    assert again.already_complete and not first.already_complete and again.counts == first.counts
    assert files_of(tmp_path / "dst") == before
    more = import_dataset(src, dst, segment_side=32)
    after = files_of(tmp_path / "dst")
    assert more.already_complete and before.items() <= after.items() and len(after) == len(before) + 3
    with pytest.raises(UserError, match="another data set"):
        import_dataset(src, dst, size=16)
    (src / "train/a/000.png").write_bytes(encoded(picture(77)))
    with pytest.raises(UserError, match="another data set"):
        import_dataset(src, dst)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    write_tree(tmp_path / "dst", {"thesis.txt": b"precious"})
    with pytest.raises(UserError, match="not empty"):
        import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst"))
    assert files_of(tmp_path / "dst") == {"thesis.txt": b"precious"}


def test_archive_and_folder_give_one_fingerprint(tmp_path: Path) -> None:
    one = import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "one"), segments=None)
    two = import_dataset(zip_of(tmp_path / "src.zip", SPLIT), str(tmp_path / "two"), segments=None)
    assert Dataset.open(one.url).fingerprint == Dataset.open(two.url).fingerprint


@pytest.mark.parametrize(("stage", "after", "kept"), [("images", 1300, 1), ("segments", 100, 1), ("read", 200, 0)])
def test_killed_import_goes_on_and_ends_the_same(tmp_path: Path, stage: str, after: int, kept: int) -> None:
    count = 30 if stage == "segments" else 250
    src = write_tree(tmp_path / "src", cifar_files(count))
    script = (
        "import os, signal, sys\n"
        "from hydramix_dist.data.importer import import_dataset\n"
        "from hydramix_dist.config.schema import SegmentSettings\n"
        f"def progress(stage, done, total):\n    if stage == {stage!r} and done >= {after}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"import_dataset({str(src)!r}, {str(tmp_path / 'cut')!r}, workers=1, progress=progress, segment_side=32,"
        f" segments=SegmentSettings() if {stage == 'segments'} else None)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", script], check=False)
    assert outcome.returncode == -signal.SIGKILL and not (tmp_path / "cut/manifest.json").exists()
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("part-*.parquet")}
    assert len(parts) == kept
    with pytest.raises(UserError, match="no data set"):
        Dataset.open(str(tmp_path / "cut"))
    if stage != "read":  # nothing was claimed while reading
        with pytest.raises(UserError, match="unfinished import"):
            import_dataset(src, str(tmp_path / "cut"), size=16)

    seen: list[tuple[str, int]] = []
    options = {"workers": 1, "segment_side": 32} | ({} if stage == "segments" else {"segments": None})
    import_dataset(src, str(tmp_path / "cut"), progress=lambda s, done, _: seen.append((s, done)), **options)  # type: ignore[arg-type]
    import_dataset(src, str(tmp_path / "whole"), **options)  # type: ignore[arg-type]
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    if stage == "images":
        assert min(done for s, done in seen if s == "images") > 1024  # the whole part was not made again


def test_workers_change_nothing(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "src", cifar_files(12))
    for workers in (1, 2):
        import_dataset(src, str(tmp_path / f"by{workers}"), workers=workers, segment_side=32)
    assert files_of(tmp_path / "by1") == files_of(tmp_path / "by2")


@pytest.mark.parametrize(("side", "expected"), [(320, [1, 2, 3, 4]), (32, [4])])
def test_large_images_go_to_a_worker_one_by_one_and_small_ones_together(
    tmp_path: Path, side: int, expected: list[int]
) -> None:
    files = {f"{name}/{n}.bmp": encoded(picture(n, side), "BMP") for name in "ab" for n in range(2)}
    seen: list[tuple[str, int]] = []
    tell = lambda stage, done, _: seen.append((stage, done))  # noqa: E731
    import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None, progress=tell)
    assert [done for stage, done in seen if stage == "images"] == expected


def process_of(_: int) -> int:
    time.sleep(0.02)  # so that no worker does all of them
    return os.getpid()


def test_workers_serve_several_maps_in_order_and_end_with_their_block() -> None:
    with Workers(2, process_of) as running:
        used = set(running.ordered_map(process_of, range(20))) | set(running.ordered_map(process_of, range(20)))
        assert len(used) == 2 and os.getpid() not in used
        assert list(running.ordered_map(abs, range(-50, 0))) == list(range(50, 0, -1))
    assert not any(map(_runs, used))


def test_one_worker_is_this_process() -> None:
    with Workers(1, process_of) as running:
        assert set(running.ordered_map(process_of, range(2))) == {os.getpid()}


def test_a_dead_worker_is_an_answer() -> None:
    with Workers(2) as running, pytest.raises(UserError, match="ended early"):
        list(running.ordered_map(os._exit, [1]))


def test_worker_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from hydramix_dist.data.pool import Workers\n"
        "def work(path):\n    pathlib.Path(path).write_text(str(os.getpid()))\n    time.sleep(60)\n"
        f"if __name__ == '__main__':\n    list(Workers(2).ordered_map(work, [{str(tmp_path / 'pid')!r}]))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        child = _wait_for(lambda: int((tmp_path / "pid").read_text() or 0) if (tmp_path / "pid").exists() else 0)
    finally:
        parent.kill()
        parent.wait()
    assert _wait_for(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _wait_for(ready: object, seconds: float = 30.0) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := ready():  # type: ignore[operator]
            return int(value)
        time.sleep(0.05)
    raise AssertionError("waited in vain")
