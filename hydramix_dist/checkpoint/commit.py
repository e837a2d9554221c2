"""Checkpoints by commit: files first, the manifest with their sha256 last; what no manifest lists does not exist.

The manifest holds a sha256 of its own content too, in every schema version: so a flipped bit is never taken for a
number, nor for a newer version.

Layout: `checkpoints/<images seen, 12 digits>/{<engine>.safetensors, <engine>.optimizer.safetensors, manifest.json}`.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydramix_dist.checkpoint.state import EngineState
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import digest

SCHEMA_VERSION = 1
_FOLDER = "checkpoints"
_log = logging.getLogger("hydramix")


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
) -> None:
    """Commit a checkpoint, then remove all but it, the newest before it (`keep` in all) and the best-scored one.

    `score` is given only where a validation part exists: the test set never chooses. A checkpoint of more images is a
    broken one that the training went back from: it goes too, so that it never stands in the place of a whole one.
    """
    folder = f"{_FOLDER}/{images:012d}"
    entries = []
    for engine, state in engines.items():
        for name, data in state.files(engine).items():
            store.put(f"{folder}/{name}", data)
            entries.append({"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
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
    _prune(store, folder, keep)


def load_newest(store: Store) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where there is none; each broken one passed over is logged.

    Raises UserError where checkpoints exist but none is whole, or where one was made by a newer version.
    """
    folders = _committed(store)
    for fallbacks, folder in enumerate(reversed(folders)):
        try:
            return _load(store, folder, fallbacks)
        except _BrokenError as broken:
            _log.warning("checkpoint %s is broken (%s); going back to the one before", store.path(folder), broken)
    if folders:
        raise UserError(
            f"no checkpoint under {store.path(_FOLDER)} is whole; delete that folder to train from the start"
        )
    return None


class _BrokenError(Exception):
    pass


def _load(store: Store, folder: str, fallbacks: int) -> Checkpoint:
    manifest = _read_manifest(store, folder)
    version = manifest["schema_version"]
    if version > SCHEMA_VERSION:
        raise UserError(f"{store.path(folder)} was made by a newer version (schema {version}); update hydramix_dist")
    files = {entry["name"]: _verified(store, folder, entry) for entry in manifest["files"]}
    engines = {name: EngineState.from_files(files, name, facts["step"]) for name, facts in manifest["engines"].items()}
    return Checkpoint(manifest["images"], engines, manifest["counters"], fallbacks)


def _read_manifest(store: Store, folder: str) -> dict[str, Any]:
    try:
        manifest = json.loads(store.read(f"{folder}/manifest.json"))
        recorded = manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or another JSON
        raise _BrokenError("its manifest is damaged") from error
    if digest(manifest) != recorded:
        raise _BrokenError("its manifest is damaged")
    return dict(manifest)


def _verified(store: Store, folder: str, entry: Mapping[str, Any]) -> bytes:
    try:
        data = store.read(f"{folder}/{entry['name']}")
    except FileNotFoundError as error:
        raise _BrokenError(f"{entry['name']} is missing") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _BrokenError(f"{entry['name']} has {len(data)} bytes and not the recorded sha256")
    return data


def _committed(store: Store) -> list[str]:
    """Return the folders that have a manifest, oldest first."""
    paths = store.list(_FOLDER) if store.exists(_FOLDER) else []
    return [path.rsplit("/", 1)[0] for path in paths if path.endswith("/manifest.json")]


def _prune(store: Store, newest: str, keep: int) -> None:
    committed = [folder for folder in _committed(store) if folder <= newest]
    scores = {folder: _score(store, folder) for folder in committed}
    scored = {folder: score for folder, score in scores.items() if score is not None}
    best = max(scored, key=lambda folder: (scored[folder], folder), default=None)
    kept = {*committed[-keep:], best}
    for folder in sorted({path.rsplit("/", 1)[0] for path in store.list(_FOLDER)} - kept):
        store.delete(f"{folder}/manifest.json")  # first: from here on it does not exist
        store.delete(folder)


def _score(store: Store, folder: str) -> float | None:
    try:
        score = _read_manifest(store, folder)["score"]
    except _BrokenError:
        return None
    return None if score is None else float(score)
