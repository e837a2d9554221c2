"""Every source layout gives the same kind of list; what could harm is left out and said."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from data_files import cifar_python, class_files, encoded, picture, write_tree, zip_of

from hydramix_dist.data import archives
from hydramix_dist.data.pickles import load_arrays
from hydramix_dist.data.sources import Source, open_source
from hydramix_dist.errors import UserError

Opener = Callable[[str | Path], Source]


@pytest.fixture
def source_at() -> Iterator[Opener]:
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(open_source(path))


def ids(source: Source) -> list[tuple[str, str, int]]:
    return [(item.id, item.split, item.label) for item in source.items]


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


FILES = class_files(["b", "a"], 2, "train/") | class_files(["a", "b"], 1, "test/", first=50)


def test_folder_zip_and_tars_give_one_list(tmp_path: Path, source_at: Opener) -> None:
    topped = {f"pack/{name}": data for name, data in FILES.items()}
    sources = [
        write_tree(tmp_path / "plain", FILES),
        write_tree(tmp_path / "topped", topped),
        zip_of(tmp_path / "a.zip", topped),
        tar_of(tmp_path / "a.tar", FILES),
        *(tar_of(tmp_path / f"a.tar.{kind}", topped, f"w:{kind}") for kind in ("gz", "bz2", "xz")),
    ]
    opened = [source_at(path) for path in sources]
    expected = [(name, name.split("/")[0], "ab".index(name.split("/")[1])) for name in sorted(FILES)]
    for source in opened:
        assert source.classes == ("a", "b")
        assert ids(source) == expected
        assert [item.read() for item in source.items] == [FILES[item.id] for item in source.items]


def test_classes_without_split_have_no_split_yet(tmp_path: Path, source_at: Opener) -> None:
    source = source_at(write_tree(tmp_path, class_files(["cat", "dog"], 2)))
    assert ids(source)[0] == ("cat/000.png", "", 0) and {item.split for item in source.items} == {""}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder_serves_as_test_only_where_there_is_no_test(
    tmp_path: Path, name: str, source_at: Opener
) -> None:
    files = class_files(["a", "b"], 1, "train/") | class_files(["a", "b"], 1, f"{name}/")
    source = source_at(write_tree(tmp_path, files))
    assert {item.split for item in source.items} == {"train", "test"} and name in source.notes[0]
    write_tree(tmp_path, class_files(["a", "b"], 1, "test/"))
    again = source_at(tmp_path)
    assert not any(item.id.startswith(name) for item in again.items) and any(name in note for note in again.notes)


def test_empty_class_and_litter(tmp_path: Path, source_at: Opener) -> None:
    write_tree(tmp_path, class_files(["a", "b"], 1) | {"a/.DS_Store": b"x", "Thumbs.db": b"x", "readme.txt": b"x"})
    (tmp_path / "hollow").mkdir()
    source = source_at(tmp_path)
    assert [item.id for item in source.items] == ["a/000.png", "b/000.png"]
    assert [(entry.item, entry.reason) for entry in source.refused] == [("hollow", "an empty class folder")]
    assert source.notes == ("1 files outside the class folders were left out",)


def test_a_class_may_be_called_train(tmp_path: Path, source_at: Opener) -> None:
    source = source_at(write_tree(tmp_path / "vehicles", class_files(["bus", "train"], 1)))
    assert source.classes == ("bus", "train") and {item.split for item in source.items} == {""}
    with pytest.raises(UserError, match="no class folders"):  # splits without classes are not two classes
        source_at(write_tree(tmp_path / "flat", class_files(["test", "train"], 1)))


def test_names_that_are_no_text_are_left_out_and_listed(tmp_path: Path, source_at: Opener) -> None:
    files = class_files(["a", "b"], 1) | {"a/\udcff.png": encoded(picture(9)), "\udcfe/0.png": encoded(picture(8))}
    for source, listed in (
        (source_at(write_tree(tmp_path / "src", files)), ["\\udcfe", "a/\\udcff.png"]),  # nothing below the folder
        (source_at(tar_of(tmp_path / "a.tar", files)), ["a/\\udcff.png", "\\udcfe/0.png"]),
    ):
        assert [item.id for item in source.items] == ["a/000.png", "b/000.png"]
        assert [entry.item for entry in source.refused] == listed
        assert all("no UTF-8" in entry.reason for entry in source.refused)


def test_links_and_special_files_are_left_out(tmp_path: Path, source_at: Opener) -> None:
    outside = write_tree(tmp_path / "out", {"secret.png": encoded(picture(1))})
    src = write_tree(tmp_path / "src", class_files(["a", "b"], 1))
    (src / "a/leak.png").symlink_to(outside / "secret.png")
    (src / "a/gone.png").symlink_to(src / "nothing.png")
    (src / "a/inner.png").symlink_to(src / "b/000.png")
    (src / "c").symlink_to(outside, target_is_directory=True)
    os.mkfifo(src / "a/pipe")
    source = source_at(src)
    assert [item.id for item in source.items] == ["a/000.png", "a/inner.png", "b/000.png"]
    reasons = {entry.item: entry.reason for entry in source.refused}
    assert "outside" in reasons["a/leak.png"] and "nowhere" in reasons["a/gone.png"]
    assert "link to a folder" in reasons["c"] and reasons["a/pipe"] == "no regular file"


@pytest.mark.parametrize("bad", ["../a/evil.png", "/a/evil.png", "a/../../evil.png", "C:/evil.png"])
def test_archive_members_that_lead_outside_are_left_out(tmp_path: Path, bad: str, source_at: Opener) -> None:
    files = class_files(["a", "b"], 1) | {bad: encoded(picture(9))}
    for source in (source_at(zip_of(tmp_path / "a.zip", files)), source_at(tar_of(tmp_path / "a.tar", files))):
        assert [item.id for item in source.items] == ["a/000.png", "b/000.png"]
        assert [entry.item for entry in source.refused] == [bad] and "absolute path" in source.refused[0].reason
    assert not list(tmp_path.parent.glob("evil.png"))


def test_links_in_archives_are_left_out(tmp_path: Path, source_at: Opener) -> None:
    path = tar_of(tmp_path / "a.tar", class_files(["a", "b"], 1))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("a/soft.png", tarfile.SYMTYPE), ("a/hard.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    zipped = zip_of(tmp_path / "a.zip", class_files(["a", "b"], 1))
    with zipfile.ZipFile(zipped, "a") as archive_zip:
        link = zipfile.ZipInfo("a/soft.png")
        link.external_attr = 0o120777 << 16
        archive_zip.writestr(link, "/etc/hostname")
    for file, names in ((path, ["a/soft.png", "a/hard.png"]), (zipped, ["a/soft.png"])):
        source = source_at(file)
        assert len(source.items) == 2 and [entry.item for entry in source.refused] == names


@pytest.mark.parametrize(
    ("files", "words"),
    [({"one.png": b"x"}, "no class folders"), ({}, "no class folders"), ({"train/x.png": b"x"}, "no class folders")],
)
def test_source_without_classes_is_an_answer(
    tmp_path: Path, files: dict[str, bytes], words: str, source_at: Opener
) -> None:
    with pytest.raises(UserError, match=words):
        source_at(write_tree(tmp_path, files))


def test_missing_and_broken_sources_are_answers(tmp_path: Path, source_at: Opener) -> None:
    with pytest.raises(UserError, match="does not exist"):
        source_at(tmp_path / "nowhere")
    whole = zip_of(tmp_path / "a.zip", class_files(["a", "b"], 1)).read_bytes()
    packed = tar_of(tmp_path / "a.tar.gz", class_files(["a", "b"], 1), "w:gz").read_bytes()
    squeezed = bytearray(tar_of(tmp_path / "a.tar.bz2", class_files(["a", "b"], 1), "w:bz2").read_bytes())
    squeezed[len(squeezed) // 2] ^= 255
    misnamed = zip_of(tmp_path / "b.zip", {"a/\u00e9.png": b"x"}).read_bytes().replace("\u00e9".encode(), b"\xff\xff")
    future = bytearray(whole)
    future[whole.find(b"PK\x01\x02") + 6] = 99  # the version needed to read it
    halves = whole[: len(whole) // 2], packed[: len(packed) // 2]
    for data in (*halves, squeezed, misnamed, future, b"text", encoded(picture(1))):
        (tmp_path / "broken").write_bytes(data)
        with pytest.raises(UserError, match="neither a folder nor a whole"):
            source_at(tmp_path / "broken")
    (tmp_path / "ring").symlink_to("ring")
    for unreadable in (tmp_path / "ring", tmp_path / "broken" / "below"):
        with pytest.raises(UserError, match="cannot be read"):
            source_at(unreadable)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="nor a regular file"):
        source_at(tmp_path / "pipe")


def test_a_tar_that_unpacks_beyond_measure_is_refused(
    tmp_path: Path, source_at: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_SLACK", 2**16)  # instead of a gigabyte, which takes long to write
    files = class_files(["a", "b"], 1)
    assert len(source_at(tar_of(tmp_path / "whole.tar.gz", files, "w:gz")).items) == 2
    bomb = tar_of(tmp_path / "bomb.tar.gz", files | {"a/zeros.png": bytes(4 * 2**20)}, "w:gz")
    with pytest.raises(UserError, match="absurdly large"):
        source_at(bomb)


def test_the_top_of_an_archive_is_no_class(tmp_path: Path, source_at: Opener) -> None:
    source = source_at(zip_of(tmp_path / "a.zip", {"/": b"", "./": b"", **class_files(["a", "b"], 1)}))
    assert source.classes == ("a", "b") and source.refused == ()


# ---- published files

IMAGES = np.stack([picture(seed, 32) for seed in range(12)])
LABELS = [3, 0, 9, 1, 2, 4, 5, 6, 7, 8, 0, 3]


def check_cifar(source: Source, labels: list[int], classes: int) -> None:
    assert len(source.classes) == classes
    assert ids(source) == [
        *((f"train-{row:05d}", "train", label) for row, label in enumerate(labels[:10])),
        *((f"test-{row:05d}", "test", label) for row, label in enumerate(labels[10:])),
    ]
    assert all(np.array_equal(item.read(), image) for item, image in zip(source.items, IMAGES, strict=True))


def planes(image: np.ndarray) -> bytes:
    return bytes(image.transpose(2, 0, 1).tobytes())


def binary(rows: slice, head: bytes = b"") -> bytes:
    pairs = list(zip(LABELS, IMAGES, strict=True))[rows]
    return b"".join(head + bytes([label]) + planes(image) for label, image in pairs)


def test_cifar10_binary(tmp_path: Path, source_at: Opener) -> None:
    files = {f"cifar-10-batches-bin/data_batch_{n + 1}.bin": binary(slice(2 * n, 2 * n + 2)) for n in range(5)}
    files["cifar-10-batches-bin/test_batch.bin"] = binary(slice(10, 12))
    source = source_at(tar_of(tmp_path / "c.tar.gz", files, "w:gz"))
    check_cifar(source, LABELS, 10)
    assert source.classes[:2] == ("airplane", "automobile")
    files["cifar-10-batches-bin/batches.meta.txt"] = b"\n".join(b"name%d" % n for n in range(10)) + b"\n\n"
    assert source_at(write_tree(tmp_path / "named", files)).classes[9] == "name9"


def test_cifar100_binary_takes_the_fine_label(tmp_path: Path, source_at: Opener) -> None:
    files = {"train.bin": binary(slice(0, 10), b"\x13"), "test.bin": binary(slice(10, 12), b"\x07")}
    check_cifar(source_at(write_tree(tmp_path, files)), LABELS, 100)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_python_versions(tmp_path: Path, protocol: int, source_at: Opener) -> None:
    def part(rows: slice, key: str) -> bytes:
        return cifar_python(IMAGES[rows], LABELS[rows], key, protocol)

    ten = {f"data_batch_{n + 1}": part(slice(2 * n, 2 * n + 2), "labels") for n in range(5)}
    ten["test_batch"] = part(slice(10, 12), "labels")
    ten["batches.meta"] = pickle.dumps({"label_names": list("ABCDEFGHIJ")}, protocol)
    source = source_at(write_tree(tmp_path / "ten", ten))
    check_cifar(source, LABELS, 10)
    assert source.classes == tuple("ABCDEFGHIJ")
    hundred = {"train": part(slice(0, 10), "fine_labels"), "test": part(slice(10, 12), "fine_labels")}
    check_cifar(source_at(write_tree(tmp_path / "hundred", hundred)), LABELS, 100)


def test_stl10_binary_is_stored_by_columns_and_counts_from_one(tmp_path: Path, source_at: Opener) -> None:
    images = [picture(seed, 96) for seed in range(4)]
    stored = [image.transpose(2, 1, 0).tobytes() for image in images]
    files = {
        "train_X.bin": b"".join(stored[:3]),
        "train_y.bin": bytes([1, 10, 2]),
        "test_X.bin": stored[3],
        "test_y.bin": bytes([5]),
    }
    source = source_at(write_tree(tmp_path, files))
    assert [item.label for item in source.items] == [0, 9, 1, 4]
    assert all(np.array_equal(item.read(), image) for item, image in zip(source.items, images, strict=True))


def test_damaged_published_files_are_answers(tmp_path: Path, source_at: Opener) -> None:
    write_tree(tmp_path, {"train.bin": binary(slice(0, 10), b"\0")[:-5], "test.bin": binary(slice(10, 12), b"\0")})
    with pytest.raises(UserError, match=r"train\.bin is truncated"):
        source_at(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"\0\xc8" + bytes(3072))
    with pytest.raises(UserError, match="beyond the 100 classes"):
        source_at(tmp_path)
    with pytest.raises(UserError, match="lacks: data_batch_2"):
        source_at(write_tree(tmp_path / "ten", {"data_batch_1.bin": b""}))


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([[1], [1, 2]], None, "'labels' is no list of 2 labels"),
        ([True, False], None, "'labels' is no list of 2 labels"),
        ([0, 2**70], None, "'labels' is no list of 2 labels"),
        ([0, 1], 5, "no list of text"),
        ([0, 1], [["cat"], "dog"], "no list of text"),
        ([0, 1], ["cat", "dog", "cat"], "two classes have the same name"),
    ],
)
def test_strange_values_in_published_pickles_are_answers(
    tmp_path: Path, labels: list[object], names: object, words: str, source_at: Opener
) -> None:
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": labels}, 2)
    files = dict.fromkeys((*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"), batch)
    if names is not None:
        files["batches.meta"] = pickle.dumps({"label_names": names}, 2)
    with pytest.raises(UserError, match=words):
        source_at(write_tree(tmp_path, files))


class Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    for call in ((os.system, f"touch {target}"), (eval, f"open({str(target)!r}, 'w')"), (np.fromfile, "/etc/hostname")):
        with pytest.raises(UserError, match="refused: only arrays"):
            load_arrays(pickle.dumps({"data": Evil(*call)}, protocol), "data_batch_1")
    assert not target.exists()


class Unbacked:
    """Pickles as an array of `count` bytes that brings a number in place of its bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> tuple[object, ...]:
        reconstruct, arguments = np.zeros(1, np.uint8).__reduce__()[:2]
        return reconstruct, arguments, (1, (self.count,), np.dtype("u1"), False, self.count)


def test_an_array_without_its_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="content is no bytes"):
        load_arrays(pickle.dumps({"data": Unbacked(3072)}, 2), "batch")


def test_object_arrays_and_hostile_memos_are_refused() -> None:
    with pytest.raises(UserError, match="only arrays"):
        load_arrays(pickle.dumps({"data": np.array([{}, "x"], dtype=object)}, 2), "batch")
    with pytest.raises(UserError, match="memo"):
        load_arrays(b"\x80\x02}r\xff\xff\xff\x7f.", "batch")
    with pytest.raises(UserError, match="no readable pickle"):
        load_arrays(b"garbage", "batch")
    with pytest.raises(UserError, match="dictionary"):
        load_arrays(pickle.dumps([1, 2]), "batch")
