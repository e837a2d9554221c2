"""The built-in image set: the same bytes every time, halves that share no pixel, no class told by its brightness."""

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hydramix_dist.data import builtin
from hydramix_dist.errors import UserError


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    builtin.build_photo_patches(folder)
    return folder


def test_a_second_build_writes_the_same_bytes_and_opens_no_socket(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    builtin.build_photo_patches(tmp_path)
    assert digests(tmp_path) == digests(built)


def test_every_class_has_its_patches_all_different_in_one_mode_and_size(built: Path) -> None:
    counts = {str(p.relative_to(built)): len(list(p.glob("*.png"))) for p in built.glob("*/*")}
    classes = sorted(photo.label for photo in builtin.PHOTOS)
    assert 8 <= len(set(classes)) <= 10
    assert counts == {f"{split}/{label}": n for split, n in (("train", 60), ("test", 100)) for label in classes}

    shapes = set()
    for path in built.rglob("*.png"):
        with Image.open(path) as image:
            shapes.add((image.mode, image.size))
    assert shapes == {("L", (32, 32))}
    assert len(set(digests(built).values())) == sum(counts.values())


@pytest.mark.parametrize("photo", builtin.PHOTOS, ids=lambda photo: photo.label)
def test_train_and_test_patches_share_no_pixel_of_their_photograph(photo: builtin.Photo) -> None:
    grey = builtin.read_photo(photo)
    patches = {split: builtin.cut_patches(photo, grey, split, n) for split, n in (("train", 60), ("test", 100))}
    boxes = {split: np.array([patch.box for patch in cut]) for split, cut in patches.items()}

    # The boxes lie on two sides of an upright or a level line ...
    ends, starts = boxes["train"][:, 2:].max(axis=0), boxes["test"][:, :2].min(axis=0)
    axis = int(np.argmax(starts - ends))
    assert ends[axis] < starts[axis]
    assert min(box[:, :2].min() for box in boxes.values()) >= 0
    assert all((box[:, 2:] <= grey.size).all() for box in boxes.values())

    # ... and say the truth: with all on the other side of the line spoilt, every patch stays as it was.
    line = int(ends[axis] + starts[axis]) // 2
    for split, cut in patches.items():
        spoilt_XY = np.array(grey).T
        spoilt_XY.swapaxes(0, axis)[slice(line, None) if split == "train" else slice(line)] = 5000
        again = builtin.cut_patches(photo, Image.fromarray(spoilt_XY.T), split, len(cut))
        assert all(np.array_equal(a.pixels_HW, b.pixels_HW) for a, b in zip(cut, again, strict=True))


def test_brightness_and_contrast_do_not_give_the_class_away(built: Path) -> None:
    """Fifteen nearest train patches by mean and deviation of the grey levels: little better than guessing."""

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for y, folder in enumerate(sorted((built / split).iterdir())):
            for path in sorted(folder.iterdir()):
                pixels = np.asarray(Image.open(path), float)
                rows.append((pixels.mean(), pixels.std()))
                labels.append(y)
        return np.array(rows), np.array(labels)

    (x, y), (x_test, y_test) = features("train"), features("test")
    x, x_test = x / x.std(axis=0), x_test / x.std(axis=0)
    nearest = np.argsort(np.linalg.norm(x_test[:, None] - x[None], axis=2), axis=1)[:, :15]
    votes = np.array([np.bincount(y[row], minlength=y.max() + 1).argmax() for row in nearest])
    accuracy = (votes == y_test).mean()
    assert accuracy < 2 / len(builtin.PHOTOS)


def test_no_patch_is_near_blank(built: Path) -> None:
    assert min(np.asarray(Image.open(path), float).std() for path in built.rglob("*.png")) > 15


def test_a_missing_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "photo_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"brick\.png.*scikit-image"):
        builtin.build_photo_patches(tmp_path / "set")


def test_every_class_states_its_photograph_and_licence() -> None:
    lines = builtin.licence_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [photo.label for photo in builtin.PHOTOS]
    assert all("CC0" in line or "public domain" in line or "no known copyright" in line for line in lines)
