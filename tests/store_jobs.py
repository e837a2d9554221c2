"""What is done in a bucket while its server fails: a set is imported, it is read, trainings are stopped and gone on with.

Each returns all that must be the same whatever the server did, and nothing else.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import Interrupted
from hydramix_dist.store import Store

TRAIN, TEST = 60, 40  # images
RUNTIME = tiny.RUNTIME.model_copy(update={"checkpoints": 2})  # after 24 images, where it stops, and 48


def read(store: Store, images: Path | None = None) -> dict[str, Any]:
    """Return the digests of a set's images: all of them, shard by shard, and every fifth one, by byte ranges."""
    dataset = Dataset.open(f"{store.url}/set")
    found = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        whole = [block for _, block in dataset.stream(split, range(count), tiny.SIDE)]
        fifth = dataset.images(split, range(0, count, 5), tiny.SIDE)
        found |= {split: digest(torch.cat(whole)), f"every fifth of {split}": digest(fifth)}
    return found


def digest(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def bring_in(store: Store, images: Path) -> dict[str, Any]:
    import_dataset(images, f"{store.url}/set", segment_side=tiny.SIDE, workers=1)
    return read(store)


def train_generator(store: Store, images: Path | None = None) -> dict[str, Any]:
    """Train, stop half way, go on from there; return all that comes of it but times."""
    folder = store.child("generator")
    with contextlib.suppress(Interrupted):
        tiny.run_generator(folder, runtime=RUNTIME, should_stop=tiny.stops_after(6))
    return outcome(folder, tiny.run_generator(folder, runtime=RUNTIME))


def train_classifier(store: Store, images: Path | None = None) -> dict[str, Any]:
    """The same with a classifier."""
    folder = store.child("classifier")
    with contextlib.suppress(Interrupted):
        tiny.run_classifier(folder, runtime=RUNTIME, should_stop=tiny.stops_after(6))
    return outcome(folder, tiny.run_classifier(folder, runtime=RUNTIME))


def outcome(folder: Store, result: dict[str, Any]) -> dict[str, Any]:
    newest = load_newest(folder)
    assert newest is not None
    records = [json.loads(line) for line in folder.read("metrics.jsonl").splitlines()]
    return {
        "result": {key: value for key, value in result.items() if key not in ("seconds", "peak_memory_bytes")},
        "metrics": {
            (key, record["images"]): value
            for record in records
            for key, value in record.items()
            if key == "test_accuracy_ratio" or (key.startswith("loss") and record["images"] == newest.images)
        },
        "state": {
            (name, part): weights_digest(tensors)
            for name, state in newest.engines.items()
            for part, tensors in (("weights", state.weights), *state.moments.items())
        },
    }


WORKS: dict[str, Callable[[Store, Path], dict[str, Any]]] = {
    "read": read,
    "import": bring_in,
    "generator": train_generator,
    "classifier": train_classifier,
}
