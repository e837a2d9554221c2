"""The weights of one engine as one plain safetensors file, for use without this program's folders."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from hydramix_dist.checkpoint.commit import BrokenError, read_manifest, verified
from hydramix_dist.checkpoint.inspect import checkpoints_of, training_record
from hydramix_dist.checkpoint.layout import pieces
from hydramix_dist.checkpoint.state import file_names, weights_digest
from hydramix_dist.errors import UserError, nearest
from hydramix_dist.store import Store, split_target

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Export:
    """Where the weights lie now, whose they are, the file's metadata, and whether this call wrote the file."""

    path: str
    engine: str
    images: int
    metadata: Mapping[str, str]
    written: bool


def export(run: Store, target: str, engine: str | None, images: int | None) -> Export:
    """Write the weights of one checkpoint to the file `target`; None: the run's own model, the newest checkpoint.

    Raises UserError for a folder without a training, an unknown engine or number of images, damaged weights, a name
    that does not end in `.safetensors`, and where the file exists with other content.
    """
    record = training_record(run)
    folders = checkpoints_of(run)
    images = max(folders) if images is None else images
    if images not in folders:
        raise UserError(f"{run.url} has no checkpoint of {images} images; --images can be {_listed(folders)}")
    engine = record["kind"] if engine is None else engine
    try:
        weights, step = _weights(run, folders[images], engine)
    except BrokenError as broken:
        raise UserError(
            f"checkpoint {run.path(folders[images])} is damaged ({broken}); --images chooses another: "
            f"{_listed(folders)} (hydramix checkpoint verify {run.url} says which are whole)"
        ) from broken
    metadata = _metadata(record, engine, images, step, weights)
    path, written = _put(target, engine, weights, metadata)
    return Export(path, engine, images, metadata, written)


def _weights(run: Store, folder: str, engine: str) -> tuple[dict[str, Tensor], int]:
    manifest = read_manifest(run, folder)
    engines = manifest["engines"]
    if engine not in engines:
        raise UserError(
            f"{run.url} has no engine '{engine}'{nearest(engine, engines)}; --engine can be {_listed(engines)}"
        )
    (entry,) = (entry for entry in manifest["files"] if entry["name"] == file_names(engine)[0])
    return safetensors.torch.load(verified(run, folder, entry)), engines[engine]["step"]


def _metadata(
    record: Mapping[str, Any], engine: str, images: int, step: int, weights: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the header's texts; what is no text is JSON."""
    identity = record["identity"]
    texts = {
        "format": "pt",  # what other readers of safetensors ask for: tensors of torch
        "kind": record["kind"],
        "engine": engine,
        "images": str(images),
        "step": str(step),
        "settings": json.dumps(identity["settings"]),
        "weights_sha256": weights_digest(weights),
    }
    return texts | ({"classes": json.dumps(identity["classes"])} if "classes" in identity else {})


def _put(target: str, engine: str, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, bool]:
    """Return the file's path, and False where it held these bytes already."""
    if not target.endswith(SUFFIX):
        example = f"{target.rstrip('/')}/{engine}{SUFFIX}"
        raise UserError(f"'{target}' is no name of a {SUFFIX} file; give for example {example}")
    store, name = split_target(target)
    content = hashlib.sha256()
    for piece in pieces(weights, metadata):
        content.update(piece)
    there = _sha256(store, name)
    if there is not None and there != content.hexdigest():
        raise UserError(f"{store.path(name)} exists and holds something else; choose another name, or remove it")
    if there is None:
        with store.writer(name) as file:
            file.writelines(pieces(weights, metadata))
    return store.path(name), there is None


def _sha256(store: Store, name: str) -> str | None:
    """Return the sha256 of what has that name, None where nothing has it; a folder's is no file's."""
    try:
        with store.open(name) as reader:
            return hashlib.file_digest(reader, "sha256").hexdigest()  # type: ignore[arg-type]  # fsspec's own reader
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return "a folder"


def _listed(choices: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, choices))
