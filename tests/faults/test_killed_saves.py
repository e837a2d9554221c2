"""SIGKILL at each point of a save that runs behind a training: the same call comes to the same weights, to the bit."""

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
import ranks
import tiny

from hydramix_dist.checkpoint import load, weights_digest
from hydramix_dist.checkpoint.inspect import describe
from hydramix_dist.store import Store

RUNTIME = tiny.RUNTIME.model_copy(update={"checkpoints": 4, "keep": 2})  # after 2, 4, 6 and 8 images
TRAININGS: dict[str, Callable[[Path | Store], dict[str, Any]]] = {
    "generator": lambda store: tiny.run_generator(store, tiny.generator_settings(batch=2, images=8), RUNTIME),
    "classifier": lambda store: tiny.run_classifier(store, tiny.classifier_settings(batch=2, images=8), RUNTIME),
}
LAST_FILE = {"generator": "discriminator.optimizer.safetensors", "classifier": "classifier.optimizer.safetensors"}
# The third save is the one that is hit: by then two earlier checkpoints stand, and it removes the first of them.
# By point: what is about to happen to which object, and which checkpoint is then the newest.
POINTS = {
    "before the data": ("begin", "000000000006/{role}.safetensors", 4),
    "within a file": ("end", "000000000006/{role}.safetensors", 4),
    "between files": ("begin", "000000000006/{last}", 4),
    "before the manifest": ("begin", "000000000006/manifest.json", 4),
    "within the manifest": ("end", "000000000006/manifest.json", 4),
    "after the manifest": ("delete", "000000000002/manifest.json", 6),
    "while pruning": ("delete", "000000000002", 6),
}


class KillingStore(Store):
    """A store that kills its own process when one thing is about to happen to one object."""

    def __init__(self, url: str, what: str, path: str) -> None:
        super().__init__(url)
        self._fatal = what, f"checkpoints/{path}"

    @contextlib.contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        self._meet("begin", path)
        with super().writer(path) as file:
            yield file
            file.flush()
            self._meet("end", path)  # written under another name, and not yet in its place

    def delete(self, path: str = "") -> None:
        self._meet("delete", path)
        super().delete(path)

    def _meet(self, what: str, path: str) -> None:
        if (what, path) == self._fatal:
            tiny.kill(os.getpid())


def train_and_die(role: str, folder: str, what: str, path: str) -> None:
    """Train in this process until it kills itself."""
    TRAININGS[role](KillingStore(folder, what, path))


def killed(role: str, folder: Path, point: str) -> None:
    """Train in a process of its own that is killed at a point of the third save."""
    what, path, _ = POINTS[point]
    path = path.format(role=role, last=LAST_FILE[role])
    assert ranks.exit_code(train_and_die, role, str(folder), what, path) == -signal.SIGKILL


@cache
def undisturbed(role: str, base: Path) -> dict[str, str]:
    TRAININGS[role](base / f"undisturbed-{role}")
    return final(base / f"undisturbed-{role}")


def final(folder: Path) -> dict[str, str]:
    """Return the digests of all that the last checkpoint holds: weights and moments."""
    checkpoint = load(Store(folder), 8)
    return {
        f"{name}/{part}": weights_digest(tensors)
        for name, state in checkpoint.engines.items()
        for part, tensors in (("weights", state.weights), *state.moments.items())
    }


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("role", ["classifier", pytest.param("generator", marks=pytest.mark.full)])
def test_killed_while_a_checkpoint_is_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, role: str, point: str
) -> None:
    killed(role, tmp_path, point)
    left = describe(Store(tmp_path))
    assert left[-1].images == POINTS[point][2]
    assert {4} <= {facts.images for facts in left} <= {2, 4, 6}
    assert not any(facts.damages for facts in left), "each checkpoint that is there is whole"
    TRAININGS[role](tmp_path)
    assert final(tmp_path) == undisturbed(role, tmp_path_factory.getbasetemp())
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {f"{images:012d}" for images in (6, 8)}
    assert not list(tmp_path.rglob(".partial-*")), "what the killed save left does not stay"


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("file", ["classifier.optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", [flip, lambda data: data[: len(data) // 2]], ids=["flipped bit", "cut"])
def test_damage_after_a_kill_costs_one_more_checkpoint_and_no_bit(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[bytes], bytes],
    file: str,
) -> None:
    """The power goes while the third save writes, and takes a part of the second one with it."""
    killed_run = _killed_before_its_manifest(tmp_path_factory.getbasetemp())
    shutil.copytree(killed_run, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / f"{4:012d}" / file
    newest.write_bytes(harm(newest.read_bytes()))
    with caplog.at_level(logging.WARNING, "hydramix"):
        TRAININGS["classifier"](tmp_path)
    assert f"{newest.parent} is broken" in caplog.text and "going back to the one before" in caplog.text
    counted = [r["checkpoint_fallbacks_total"] for r in tiny.metrics(tmp_path) if "checkpoint_fallbacks_total" in r]
    assert counted == [1]
    assert final(tmp_path) == undisturbed("classifier", tmp_path_factory.getbasetemp())


@cache
def _killed_before_its_manifest(base: Path) -> Path:
    killed("classifier", base / "killed-before-its-manifest", "before the manifest")
    return base / "killed-before-its-manifest"
