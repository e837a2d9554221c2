"""What is inside the checkpoints of a run, and is every file of them as it was written?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydramix_dist.checkpoint.commit import BrokenError, committed, images_of, read_manifest, verified
from hydramix_dist.checkpoint.layout import count_values
from hydramix_dist.checkpoint.state import file_names
from hydramix_dist.errors import UserError
from hydramix_dist.store import Store
from hydramix_dist.store.run import read_run

_NAMED = 4  # trainings of a pilot that a refusal names


@dataclass(frozen=True)
class EngineFacts:
    """One engine in a checkpoint: step, number of weights with buffers (None: file damaged), bytes of its files."""

    step: int
    weights: int | None
    bytes: int


@dataclass(frozen=True)
class CheckpointFacts:
    """One checkpoint: images seen, folder, engines by name, counters, score, and what is damaged, in words.

    Where the manifest itself is damaged, nothing but images and folder is known.
    """

    images: int
    folder: str
    engines: Mapping[str, EngineFacts]
    counters: Mapping[str, Any]
    score: float | None
    damages: tuple[str, ...]


def training_record(run: Store) -> dict[str, Any]:
    """Return the `run.json` of a training's folder. Raises UserError for a folder without a run, or with a pilot."""
    record = read_run(run)
    if record["kind"] == "pilot":
        trainings = [path.removesuffix("/run.json") for path in run.list() if path.endswith("/run.json")]
        named = ", ".join(trainings[:_NAMED]) + (f" and {len(trainings) - _NAMED} more" * (len(trainings) > _NAMED))
        raise UserError(
            f"{run.url} holds a pilot, checkpoints are in the folders of its trainings; give one of them: "
            f"{named or 'there is none yet'}"
        )
    return record


def checkpoints_of(run: Store) -> dict[int, str]:
    """Return the folders of all checkpoints by images seen, oldest first. Raises UserError where there is none."""
    folders = {images_of(folder): folder for folder in committed(run)}
    if not folders:
        raise UserError(f"{run.url} has no checkpoint yet; its command writes one when it is stopped, and at its end")
    return folders


def describe(run: Store) -> list[CheckpointFacts]:
    """Return what is inside each checkpoint of a training's folder, oldest first; every file of them is read.

    Raises UserError where the folder holds no training, no checkpoint, or one made by a newer version.
    """
    training_record(run)
    return [_describe(run, images, folder) for images, folder in checkpoints_of(run).items()]


def _describe(run: Store, images: int, folder: str) -> CheckpointFacts:
    try:
        manifest = read_manifest(run, folder)
    except BrokenError as broken:
        return CheckpointFacts(images, folder, {}, {}, None, (str(broken),))
    counted: dict[str, int] = {}
    damages = []
    for entry in manifest["files"]:
        try:
            counted[entry["name"]] = count_values(verified(run, folder, entry))
        except BrokenError as broken:
            damages.append(str(broken))
    engines = {
        name: EngineFacts(
            step=facts["step"],
            weights=counted.get(file_names(name)[0]),
            bytes=sum(entry["bytes"] for entry in manifest["files"] if entry["name"] in file_names(name)),
        )
        for name, facts in manifest["engines"].items()
    }
    return CheckpointFacts(images, folder, engines, manifest["counters"], manifest["score"], tuple(damages))
