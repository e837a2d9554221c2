"""Fixtures that several folders of tests share: a tiny data set and a finished pilot, made once, and a tiny disk."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import tiny

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset

CLASSES = {"blue": 6, "green": 6, "red": 4}  # red has fewer images than the pilot's five a class


@dataclass(frozen=True)
class FinishedPilot:
    """A pilot that ran undisturbed through the command line: its inputs, its folder, and what it printed."""

    images: Path
    preset: Path
    run: Path
    stdout: str
    stderr: str


@lru_cache
def _images(base: Path) -> Path:
    return tiny.image_folder(base / "images", CLASSES, test=8)


@lru_cache
def _data(base: Path) -> Path:
    import_dataset(_images(base), str(base / "imported"), segment_side=tiny.SIDE, workers=1)
    return base / "imported"


@lru_cache
def _pilot(base: Path) -> FinishedPilot:
    images, preset, run = _images(base), tiny.write_preset(base / "tiny.yaml"), base / "pilot"
    done = tiny.hydramix("pilot", images, "--preset", preset, "--out", run)
    return FinishedPilot(images, preset, run, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 32x32 PNG files, four to six for training and eight for testing each."""
    return _images(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def data_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images, imported."""
    return str(_data(tmp_path_factory.getbasetemp()))


@pytest.fixture
def dataset(data_url: str) -> Dataset:
    """The imported images, opened."""
    return Dataset.open(data_url)


@pytest.fixture(scope="session")
def finished_pilot(tmp_path_factory: pytest.TempPathFactory) -> FinishedPilot:
    """A finished pilot of two arms and two seeds on these images. Nobody may change its folder."""
    return _pilot(tmp_path_factory.getbasetemp())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB, for tests marked `service`: mounting it needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tiny file system (needs root): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
