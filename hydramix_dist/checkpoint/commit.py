"""Checkpoints by commit: files first, the manifest with their sha256 last; what no manifest lists does not exist.

The manifest holds a sha256 of its own content too, in every schema version: so a flipped bit is never taken for a
number, nor for a newer version.

Layout: `checkpoints/<images seen, 12 digits>/{<engine>.safetensors, <engine>.optimizer.safetensors, manifest.json}`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from hydramix_dist.checkpoint.layout import pieces
from hydramix_dist.checkpoint.state import EngineState, file_names
from hydramix_dist.errors import DamagedError, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest
from hydramix_dist.store.traffic import traffic

SCHEMA_VERSION = 1
_FOLDER = "checkpoints"
_log = logging.getLogger("hydramix")


class BrokenError(Exception):
    """A checkpoint, or a file of one, is not what was written; the text says in a few words what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: engine states by name, the training's counters, and how many newer ones were broken."""

    images: int
    engines: Mapping[str, EngineState]
    counters: Mapping[str, Any]
    fallbacks: int


def save(
    store: Store,
    images: int,
    engines: Mapping[str, EngineState],
    counters: Mapping[str, Any],
    *,
    keep: int,
    score: float | None = None,
) -> int:
    """Commit a checkpoint and return its bytes; all but it, the newest before it (`keep` in all) and the best one go.

    `score`, by which one is the best, is given only where a validation part exists: the test set never chooses. A
    checkpoint of more images is a broken one that the training went back from: it goes too, so that it never stands in
    the place of a whole one.
    """
    folder, there = _folder(images), _folders_there(store)
    if folder in there:  # of a killed save, or a broken one that the training went back from
        remove(store, folder)
    entries = [
        _write(store, folder, name, tensors)
        for engine, state in engines.items()
        for name, tensors in state.files(engine).items()
    ]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "images": images,
        "engines": {engine: {"step": state.step} for engine, state in engines.items()},
        "counters": dict(counters),
        "score": score,
        "files": entries,
    }
    manifest["sha256"] = digest(manifest)
    store.put(f"{folder}/manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    _prune(store, there | {folder: True}, folder, keep)
    return sum(int(entry["bytes"]) for entry in entries)


def load_newest(store: Store, weights_of: str | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where there is none; each broken one passed over is logged.

    With `weights_of` only that engine's weights are read: what is needed to use it, not to train on. Raises UserError
    where checkpoints exist but none is whole, or where one was made by a newer version.
    """
    folders = committed(store)
    for fallbacks, folder in enumerate(reversed(folders)):
        try:
            return _load(store, folder, fallbacks, weights_of)
        except BrokenError as broken:
            traffic.count(verification_failures=1)
            _log.warning("checkpoint %s is broken (%s); going back to the one before", store.path(folder), broken)
    if folders:
        raise UserError(
            f"no checkpoint under {store.path(_FOLDER)} is whole; delete that folder to train from the start"
        )
    return None


def load(store: Store, images: int) -> Checkpoint:
    """Return the checkpoint of that many images: the one that another process has chosen by `load_newest`.

    Raises UserError where it is not there, broken, or made by a newer version.
    """
    folder = _folder(images)
    try:
        return _load(store, folder, fallbacks=0, weights_of=None)
    except BrokenError as broken:
        traffic.count(verification_failures=1)
        raise UserError(
            f"checkpoint {store.path(folder)} cannot be loaded ({broken}); run the command again, it chooses anew"
        ) from broken


def committed(store: Store) -> list[str]:
    """Return the folders of all checkpoints, that is those with a manifest, oldest first."""
    return sorted(folder for folder, whole in _folders_there(store).items() if whole)


def images_of(folder: str) -> int:
    """Return the number of images seen that a checkpoint's folder is named by."""
    return int(folder.rsplit("/", 1)[-1])


def read_manifest(store: Store, folder: str) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises BrokenError, and UserError where it was made by a newer version."""
    manifest = _intact_manifest(store, folder)
    version = manifest["schema_version"]
    if version > SCHEMA_VERSION:
        raise UserError(f"{store.path(folder)} was made by a newer version (schema {version}); update hydramix_dist")
    return manifest


def verified(store: Store, folder: str, entry: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file that the manifest lists, if they are those written. Raises BrokenError."""
    data = b""
    for _ in range(2):  # once more: it may have been damaged on its way here
        try:
            data = store.read(f"{folder}/{entry['name']}")
        except FileNotFoundError as error:
            raise BrokenError(f"{entry['name']} is missing") from error
        except DamagedError as error:
            raise BrokenError(f"{entry['name']} is damaged") from error
        if hashlib.sha256(data).hexdigest() == entry["sha256"]:
            return data
    raise BrokenError(f"{entry['name']} has {len(data)} bytes and not the recorded sha256")


def _load(store: Store, folder: str, fallbacks: int, weights_of: str | None) -> Checkpoint:
    manifest = read_manifest(store, folder)
    wanted = None if weights_of is None else file_names(weights_of)[0]
    files = {
        entry["name"]: safetensors.torch.load(verified(store, folder, entry))
        for entry in manifest["files"]
        if wanted in (None, entry["name"])
    }
    engines = {
        name: EngineState.from_files(files, name, facts["step"])
        for name, facts in manifest["engines"].items()
        if weights_of in (None, name)
    }
    return Checkpoint(manifest["images"], engines, manifest["counters"], fallbacks)


def _intact_manifest(store: Store, folder: str) -> dict[str, Any]:
    try:
        manifest = json.loads(store.read(f"{folder}/manifest.json"))
        recorded = manifest.pop("sha256")
    except FileNotFoundError as error:
        raise BrokenError("its manifest is missing") from error
    except (DamagedError, ValueError, KeyError, TypeError, AttributeError) as error:  # or no JSON, or another JSON
        raise BrokenError("its manifest is damaged") from error
    if digest(manifest) != recorded:
        raise BrokenError("its manifest is damaged")
    return dict(manifest)


def _write(store: Store, folder: str, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one file and return its entry in the manifest."""
    sha256, size = hashlib.sha256(), 0
    with store.writer(f"{folder}/{name}") as file:
        for piece in pieces(tensors):
            file.write(piece)
            sha256.update(piece)  # of what lies in memory: read back, a disk's error would be taken for good
            size += len(piece)
    return {"name": name, "bytes": size, "sha256": sha256.hexdigest()}


def _prune(store: Store, there: Mapping[str, bool], newest: str, keep: int) -> None:
    whole = [folder for folder in sorted(there) if there[folder] and folder <= newest]
    for folder in sorted(there.keys() - {*whole[-keep:], best_of(store, whole)}):
        remove(store, folder)


def best_of(store: Store, folders: Iterable[str]) -> str | None:
    """Return the checkpoint with the best score, the later of equal ones; None where none has a score."""
    scores = {folder: score for folder in folders if (score := _score(store, folder)) is not None}
    return max(scores, key=lambda folder: (scores[folder], folder), default=None)


def remove(store: Store, folder: str) -> None:
    """Remove a checkpoint, or what a killed save has left of one."""
    store.delete(f"{folder}/manifest.json")  # first: from here on it does not exist
    store.delete(folder)


def _folders_there(store: Store) -> dict[str, bool]:
    """Return the folders of checkpoints and of killed saves, and whether each has its manifest, from one listing.

    A user may have put other things beside them. On a disk a save may have died in its first file, which is not listed.
    """
    paths = store.list(_FOLDER)
    local = store.local_path(_FOLDER)
    unlisted = [f"{_FOLDER}/{path.name}/" for path in local.iterdir()] if local is not None and local.is_dir() else []
    matches = (re.match(rf"{_FOLDER}/\d{{12,}}(?=/)", path) for path in [*paths, *unlisted])
    return {match[0]: f"{match[0]}/manifest.json" in paths for match in matches if match}


def _score(store: Store, folder: str) -> float | None:
    try:
        score = _intact_manifest(store, folder)["score"]
    except BrokenError:
        return None
    return None if score is None else float(score)


def _folder(images: int) -> str:
    return f"{_FOLDER}/{images:012d}"
