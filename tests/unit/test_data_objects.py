"""A source in object storage gives what the same files on a disk give, and what it costs is bounded."""

import contextlib
import io
import tarfile
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_files import class_files, edited, encoded, picture, write_tree, zip_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hydramix_dist.data import staging
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.decode import Refusal
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.sources import ChangedError, Item, Source, open_source, payload_digest
from hydramix_dist.data.verify import verify
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

if TYPE_CHECKING:
    from fault_proxy import FaultProxy

SPLIT = class_files(["a", "b"], 3, "train/") | class_files(["a", "b"], 2, "test/", first=500)


def uploaded(url: str, files: dict[str, bytes]) -> str:
    """Put files below a URL; return it."""
    for name, data in files.items():
        Store(url).put(name, data)
    return url


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.service)])
def place(request: pytest.FixtureRequest) -> str:
    """The URL of an empty folder in object storage."""
    return request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{uuid.uuid4().hex}"  # type: ignore[no-any-return]


def laid_open(src: str | Path) -> tuple[Any, ...] | str:
    """Return all that a source says, or the error without the name of its place."""
    try:
        with open_source(src) as source:
            items = [(item.id, item.split, item.label) for item in source.items]
            found = [_plain(payload) for payload in source.payloads(range(len(items)))]
            return source.layout, source.classes, items, found, source.refused, source.notes
    except UserError as error:
        return str(error).split(" ", 1)[1]


def _plain(payload: object) -> object:
    return payload.tolist() if isinstance(payload, np.ndarray) else str(payload)


# ---- the same as on a disk

Part = st.sampled_from(["a", "b", "train", "test", "val", ".git", "__MACOSX", "x y", "ü"])
Names = st.lists(Part, min_size=1, max_size=4).map(lambda parts: "/".join([*parts, "1.png"]))
Trees = st.dictionaries(Names | st.sampled_from(["a/.DS_Store", "Thumbs.db", "note.txt"]), st.binary(max_size=9))


@given(Trees)
def test_any_tree_of_objects_gives_the_same_source_as_on_a_disk(files: dict[str, bytes]) -> None:
    key = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / key, files)
        there = laid_open(uploaded(f"memory://{key}", files)) if files else None
        if there is not None:
            assert there == laid_open(Path(folder) / key)


KINDS = [(24, "PNG"), (24, "JPEG"), (40, "PNG"), (16, "BMP"), (24, "GIF")]
Images = st.sampled_from([encoded(picture(n, side), kind) for n, (side, kind) in enumerate(KINDS)] + [b"", b"words"])
Sets = st.dictionaries(
    st.tuples(st.sampled_from(["train", "test", "val"]), st.sampled_from(["a", "b", "c"]), st.integers(0, 9)),
    Images,
    min_size=1,
    max_size=12,
)


@settings(max_examples=25)
@given(Sets)
def test_any_set_is_imported_as_from_a_disk(members: dict[tuple[str, str, int], bytes]) -> None:
    files = {f"{split}/{name}/{number}.png": data for (split, name, number), data in members.items()}
    key = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as folder:
        sources = write_tree(Path(folder) / "set", files), uploaded(f"memory://{key}/set", files)
        targets = f"{folder}/out", f"memory://{key}/out"
        found = [_imported(source, target) for source, target in zip(sources, targets, strict=True)]
    assert found[0] == found[1]


def _imported(src: str | Path, dst: str) -> object:
    try:
        import_dataset(src, dst, segments=None, workers=1)
    except UserError as error:
        return str(error)
    return Dataset.open(dst).manifest  # plan, fingerprint and the checksum of every file are in it


def test_class_folders_go_from_object_storage_into_object_storage(place: str, tmp_path: Path) -> None:
    near = import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst"))
    far = import_dataset(uploaded(f"{place}/src", SPLIT), f"{place}/dst")
    assert far.url == f"{place.replace('memory://', 'memory:///')}/dst" and far.counts == near.counts
    assert Dataset.open(far.url).manifest == Dataset.open(near.url).manifest
    assert verify(far.url) == []
    assert Store(far.url).list() == Store(near.url).list()
    again = import_dataset(f"{place}/src", f"{place}/dst")
    assert again.already_complete and not far.already_complete


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_object_is_known_by_its_content(place: str, tmp_path: Path, kind: str) -> None:
    files = {f"pack/{name}": data for name, data in SPLIT.items()}
    archive = zip_of(tmp_path / "x", files) if kind == "zip" else _tar(tmp_path / "x", files, kind)
    url = uploaded(place, {"images": archive.read_bytes()})
    assert laid_open(f"{url}/images") == laid_open(archive)
    report = import_dataset(f"{url}/images", f"{url}/out", segments=None, workers=1)
    from_disk = import_dataset(archive, str(tmp_path / "out"), segments=None, workers=1)
    there, here = Dataset.open(report.url).manifest, Dataset.open(from_disk.url).manifest
    assert there.source == "images" and (there.plan, there.fingerprint) == (here.plan, here.fingerprint)


def _tar(path: Path, files: dict[str, bytes], kind: str) -> Path:
    with tarfile.open(path, f"w:{kind[4:]}" if "." in kind else "w") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_published_files_below_a_prefix(place: str, tmp_path: Path) -> None:
    row = b"\x13\x02" + picture(1, 32).transpose(2, 0, 1).tobytes()
    files = {"train.bin": row * 3, "test.bin": row}
    there = laid_open(uploaded(f"{place}/cifar", files))
    assert there[0] == "CIFAR-100 binary" and len(there[2]) == 4
    assert there == laid_open(write_tree(tmp_path / "cifar", files))


@pytest.mark.parametrize("key", ["hollow/", "", "a/sub/"])
def test_the_empty_objects_that_stand_for_folders_are_no_files(seaweed: Any, bucket: str, key: str) -> None:
    uploaded(f"{bucket}/src", class_files(["a", "b"], 1))
    before = laid_open(f"{bucket}/src")
    name, prefix = bucket.removeprefix("s3://").split("/")
    with contextlib.closing(seaweed.client()) as client:
        client.put_object(Bucket=name, Key=f"{prefix}/src/{key}", Body=b"")
    assert laid_open(f"{bucket}/src") == before


def test_names_that_no_disk_has_are_left_out_and_listed() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    uploaded(store.url, class_files(["a", "b"], 1))
    store.put("a/./1.png", b"")
    with open_source(store.url) as source:
        assert [item.id for item in source.items] == ["a/000.png", "b/000.png"]
        assert [(entry.item, "rename" in entry.reason) for entry in source.refused] == [("a/./1.png", True)]


# ---- what it costs


def test_objects_are_listed_once_and_each_is_read_twice(proxied: "FaultProxy", bucket: str, tmp_path: Path) -> None:
    uploaded(f"{bucket}/src", SPLIT)
    proxied.clear()
    import_dataset(f"{bucket}/src", str(tmp_path / "dst"), segments=None, workers=1)
    asked = Counter((request.method, "/src/" in request.path) for request in proxied.requests)
    assert asked == {("GET", True): 2 * len(SPLIT), ("GET", False): 1}  # the list's prefix is no part of its path


def test_objects_are_read_side_by_side(proxied: "FaultProxy", bucket: str) -> None:
    uploaded(f"{bucket}/src", class_files(["a", "b"], 20))
    with open_source(f"{bucket}/src") as source:
        proxied.clear()
        proxied.faults.gather, proxied.faults.latency = 16, 0.1
        assert len(list(source.payloads(range(40)))) == 40
    assert proxied.most_at_once == 16


def test_an_archive_is_copied_once_and_leaves_no_file(proxied: "FaultProxy", bucket: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 2000, 2000, 3), np.uint8)
    archive = zip_of(tmp_path / "x.zip", {f"{name}/1.png": encoded(noise["ab".index(name)]) for name in "ab"})
    uploaded(bucket, {"x.zip": archive.read_bytes()})
    proxied.clear()
    copied: list[int] = []
    temporary = set(Path(tempfile.gettempdir()).iterdir())

    def tell(stage: str, done: int, total: int) -> None:
        assert stage == "copy" and total == archive.stat().st_size
        copied.append(done)

    with open_source(f"{bucket}/x.zip", tell) as source:
        assert len(list(source.payloads(range(2)))) == 2
        assert not [path for path in set(Path(tempfile.gettempdir()).iterdir()) - temporary if path.is_file()]
    got = sum(request.sent for request in proxied.requests if request.method == "GET" and "x.zip" in request.path)
    assert got == copied[-1] == archive.stat().st_size > 2**24
    assert copied == sorted(copied) and len(copied) == 3  # of at most eight mebibytes each


# ---- what goes wrong in the middle


def test_an_object_that_is_gone_is_listed(place: str) -> None:
    url = uploaded(place, class_files(["a", "b"], 2))
    with open_source(url) as source:
        Store(url).delete("a/001.png")
        found = list(source.payloads(range(4)))
    assert isinstance(found[1], Refusal) and "not there any more" in str(found[1])
    assert [type(payload) for payload in found[:1] + found[2:]] == [bytes] * 3


def test_an_absurdly_large_object_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydramix_dist.data.trees.MAX_BYTES", 10_000)
    url = uploaded(f"memory://{uuid.uuid4().hex}", class_files(["a", "b"], 1) | {"a/huge.png": bytes(10_001)})
    read: list[str] = []
    whole = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path, *rest: read.append(path) or whole(self, path, *rest))
    with open_source(url) as source:
        reasons = [str(payload) for payload in source.payloads(range(3)) if isinstance(payload, Refusal)]
    assert reasons == ["absurdly large: 10001 bytes, at most 10000 are read"] and "a/huge.png" not in read


def test_a_store_that_refuses_ends_the_import_and_what_was_staged_goes_on(
    proxied: "FaultProxy", bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_ITEMS_PER_PART", 4)
    monkeypatch.setattr(staging, "_BATCH_BYTES", 1)
    files = class_files(["a", "b"], 10)
    src, dst = uploaded(f"{bucket}/src", files), f"{bucket}/dst"

    def tell(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("read", total):
            proxied.faults.refuse = lambda method, path: path.endswith("b/004.png")

    with pytest.raises(UserError, match=r"src/b/004\.png: permission denied"):
        import_dataset(src, dst, segments=None, workers=1, progress=tell)
    with pytest.raises(UserError, match="no data set"):
        Dataset.open(dst)
    assert len([path for path in Store(dst).list() if "part-" in path]) == 3  # of 14 items before it

    proxied.faults.refuse = lambda method, path: False
    seen: list[int] = []
    import_dataset(src, dst, segments=None, workers=1, progress=lambda s, done, _: seen.append(done * (s == "images")))
    assert min(filter(None, seen)) == 13
    import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None, workers=1)
    assert Dataset.open(dst).manifest == Dataset.open(str(tmp_path / "dst")).manifest


def test_an_image_that_is_damaged_on_its_way_is_read_again(proxied: "FaultProxy", bucket: str, tmp_path: Path) -> None:
    files = {name.replace("png", "bmp"): encoded(picture(n), "BMP") for n, name in enumerate(SPLIT)}
    src, dst = uploaded(f"{bucket}/src", files), f"{bucket}/dst"
    damage = iter([True, False, True])
    proxied.faults.flip = lambda path: path.endswith("train/b/001.bmp") and next(damage, False)
    import_dataset(src, dst, segments=None, workers=1)
    assert sum(request.fault == "flip" for request in proxied.requests) == 2
    import_dataset(write_tree(tmp_path / "src", files), str(tmp_path / "dst"), segments=None, workers=1)
    assert Dataset.open(dst).manifest == Dataset.open(str(tmp_path / "dst")).manifest


def test_a_part_that_is_damaged_on_its_way_is_read_again(proxied: "FaultProxy", bucket: str, tmp_path: Path) -> None:
    src, met = write_tree(tmp_path / "src", SPLIT), list[str]()
    proxied.faults.flip = lambda path: "part-" in path and len(met) < 3 and not met.append(path)  # type: ignore[func-returns-value]
    import_dataset(src, f"{bucket}/dst", segments=None, workers=1)
    assert len(met) == 3
    import_dataset(src, str(tmp_path / "dst"), segments=None, workers=1)
    assert Dataset.open(f"{bucket}/dst").manifest == Dataset.open(str(tmp_path / "dst")).manifest


@pytest.mark.parametrize("wrong", [(), (2,), (1, 2), (1,)])
def test_an_item_that_is_another_than_before_is_read_once_more(wrong: tuple[int, ...]) -> None:
    """Where no checksum travels with it: it was damaged on its way when it was first read, or now."""
    reads = iter(b"bad%d" % number if number in wrong else b"good" for number in range(1, 4))
    items = (Item("a/1.png", "", 0, lambda: next(reads), size=4), Item("b/1.png", "", 1, lambda: b"other", size=5))
    source = Source("src", "class folders", ("a", "b"), items, (), ())
    digests = [payload_digest(payload) for payload in source.payloads(range(2))]
    if 1 in wrong:
        with pytest.raises(ChangedError, match=r"'a/1\.png' is not what it was"):
            list(source.known_payloads([0, 1], digests))
    else:
        assert list(source.known_payloads([0, 1], digests)) == [b"good", b"other"]


def test_a_source_that_changes_while_it_is_imported_is_an_answer(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "src", SPLIT)

    def tell(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("read", total):
            edited(src / "train/a/001.png", lambda data: data.__setitem__(slice(None), encoded(picture(99))))

    with pytest.raises(UserError, match=r"'train/a/001\.png' is not what it was"):
        import_dataset(src, str(tmp_path / "dst"), segments=None, workers=1, progress=tell)
    report = import_dataset(src, str(tmp_path / "dst"), segments=None, workers=1)  # nothing bars the changed one
    assert np.array_equal(Dataset.open(report.url).images("train", [1], 24).numpy()[0].transpose(1, 2, 0), picture(99))


@pytest.mark.parametrize("reader", [staging.read_outcomes, lambda store, path: list(staging.read_part(store, path))])
def test_a_damaged_part_is_an_answer(
    tmp_path: Path, reader: Callable[[Store, str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndError(Exception):
        pass

    def end(*_: object) -> None:
        raise EndError

    monkeypatch.setattr("hydramix_dist.data.importer.write_objects", end)
    with pytest.raises(EndError):
        import_dataset(write_tree(tmp_path / "src", SPLIT), str(tmp_path / "dst"), segments=None, workers=1)
    (part,) = (path for path in Store(tmp_path / "dst").list() if "part-" in path)
    reader(Store(tmp_path / "dst"), part)
    edited(tmp_path / "dst" / part, lambda data: data.__setitem__(slice(60, 90), bytes(30)))
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged.*delete .*dst/import"):
        reader(Store(tmp_path / "dst"), part)


# ---- what is no source, and no destination


def test_what_is_no_source_is_said_in_a_sentence(place: str) -> None:
    uploaded(place, {"text": b"words", "one/a/x.png": encoded(picture(1)), "one/b/x.png": encoded(picture(2))})
    import_dataset(uploaded(f"{place}/src", SPLIT), f"{place}/set", segments=None, workers=1)
    for below, words in [
        ("nowhere", r"nothing lies at '.*/nowhere' or below it; give a folder"),
        ("text", "neither a folder nor a whole zip or tar archive"),
        ("one/a", "has no class folders"),
        ("set", "is an imported image set already"),
    ]:
        with pytest.raises(UserError, match=words):
            import_dataset(f"{place}/{below}", f"{place}/dst")
    assert not Store(f"{place}/dst").exists()


def test_what_is_no_destination_is_said_in_a_sentence(place: str) -> None:
    src = uploaded(f"{place}/src", SPLIT)
    other = uploaded(f"{place}/other", class_files(["a", "b"], 2))
    import_dataset(src, f"{place}/set", segments=None, workers=1)
    manifest = Store(f"{place}/set").read("manifest.json")
    uploaded(place, {"newer/manifest.json": b'{"schema_version": 99}', "foreign/thesis.txt": b"precious"})
    uploaded(place, {"strange/import/plan.json": b"a plan of another kind"})
    before = Store(place).list()
    for source, below, words in [
        (src, "src", "is the source itself"),
        (f"{src}/", "src", "is the source itself"),
        (src, "src/deep/out", "lies inside the source"),
        (other, "set", "holds another data set"),
        (src, "newer", "schema version 99, this program reads up to"),
        (src, "foreign", "is not empty and holds no data set"),
        (src, "strange", "is damaged"),
        (f"{src}/train", "src", "is not empty"),
    ]:
        with pytest.raises(UserError, match=words):
            import_dataset(source, f"{place}/{below}", segments=None, workers=1)
    assert Store(place).list() == before and Store(f"{place}/set").read("manifest.json") == manifest


def test_a_bucket_that_is_not_there_is_said_in_a_sentence(bucket: str, tmp_path: Path) -> None:
    src = write_tree(tmp_path / "src", SPLIT)
    for source, target in ((src, "s3://no-such-bucket/dst"), ("s3://no-such-bucket/src", str(tmp_path / "dst"))):
        with pytest.raises(UserError, match=r"bucket 'no-such-bucket' does not exist|the bucket does not exist"):
            import_dataset(source, target, segments=None, workers=1)


def test_a_folder_may_be_named_by_a_file_url(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "src", SPLIT)
    assert laid_open(f"file://{src}") == laid_open(src)
    with pytest.raises(UserError, match="lies inside the source"):
        import_dataset(f"file://{src}", str(src / "out"))
