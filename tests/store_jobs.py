"""What is done in a bucket while its server fails: a set is imported and read, trainings are stopped and gone on with.

Each work returns all that must be the same whatever the server did, and nothing else.
"""

import contextlib
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fault_proxy import FaultProxy
from seaweed import Identity, Seaweed

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.config.store import VARIABLE
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.errors import Interrupted, UserError
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively

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
        "result": {
            key: value for key, value in result.items() if key not in ("seconds", "cpu_seconds", "peak_memory_bytes")
        },
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


@dataclass(frozen=True)
class World:
    """A folder of a bucket, the proxy that leads there, the server behind it, and a source of images on this disk."""

    store: Store
    proxy: FaultProxy
    server: Seaweed
    images: Path
    identities: tuple[Identity, ...]
    patch: pytest.MonkeyPatch

    def be_patient(self, seconds: float) -> None:
        self.patch.setenv(VARIABLE, json.dumps({"cache": None, "patience": seconds}))

    def prepare(self, work: str) -> None:
        """Do without faults what a work begins with."""
        if work == "read":
            WORKS["import"](self.store, self.images)
        self.proxy.clear()

    def do(self, work: str) -> dict[str, Any]:
        return WORKS[work](self.store, self.images)

    def when(self, path: str, act: Callable[[], object]) -> Callable[[], object]:
        """Have something done once, in the middle of a body to or from an object; return the check that it was."""
        done = self.proxy.when(
            lambda _: any(r.path.endswith(path) and bool(r.uploaded or r.sent) for r in self.proxy.requests), act
        )
        return lambda: done.result(0)

    def asked(self, *statuses: int) -> Counter[tuple[object, ...]]:
        """Return how often each request got one of these answers."""
        return Counter(
            (r.method, r.path, r.range, *r.query.items()) for r in self.proxy.requests if r.status in statuses
        )

    def mended(self) -> Store:
        """Return the folder, reached past the proxy by a client of its own; the server is as at the beginning."""
        if self.server.pid is None or self.server.identities != self.identities:
            self.server.restart(self.identities)
        self.patch.setenv("AWS_ENDPOINT_URL", self.server.endpoint)
        return Store(self.store.url)


class EachOnce:
    """Says yes to each path once."""

    def __init__(self) -> None:
        self._met: set[str] = set()

    def __call__(self, path: str) -> bool:
        new = path not in self._met
        self._met.add(path)
        return new


def take_turns(url: str) -> None:
    """Train the classifier if this process gets its folder; say how it stands, and go on when a line comes."""
    print("ready", flush=True)
    sys.stdin.readline()
    store = Store(url)
    try:
        with exclusively(store.child("classifier")):
            print("mine", flush=True)
            sys.stdin.readline()
            train_classifier(store)
    except UserError as error:
        print(error, flush=True)
