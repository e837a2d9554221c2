"""Runs as their commands leave them, made in no time: real folders, real checkpoints of one small tensor."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hydramix_dist import checkpoint
from hydramix_dist.checkpoint import EngineState
from hydramix_dist.store import Store
from hydramix_dist.store.run import RunFolder

DAY = 86400.0


def make_run(
    store: Store,
    kind: str = "classifier",
    state: str = "succeeded",
    images: Sequence[int] = (),
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    scores: Mapping[int, float] | None = None,
    days: float = 0.0,
    inside: Callable[[], None] = lambda: None,
) -> Store:
    """Make a run with a checkpoint at each of these numbers of images, whose last word is `days` old; return it.

    `state` "killed" leaves it running, though nobody holds it; `inside` is done once it has begun.
    """
    folder = RunFolder.begin(store, kind, {"name": store.name} | dict(identity or {}), dict(facts or {}))
    inside()
    for count in images:
        states = {kind: EngineState({"weight": torch.full((64,), float(count))}, {}, count)}
        checkpoint.save(store, count, states, {}, keep=len(images), score=(scores or {}).get(count))
    if state == "succeeded":
        store.put("result.json", b"{}")
        folder.succeed()
    elif state == "failed":
        folder.fail("stopped")
    if days and state != "killed":
        text = store.read("status.json").decode()
        word = text.partition('"updated": ')[2].strip(" \n}")
        store.put("status.json", text.replace(word, str(round(time.time() - days * DAY, 3))).encode())
    return store


def make_pilot(
    store: Store,
    state: str = "succeeded",
    days: float = 0.0,
    images: Sequence[int] = (8, 16),
    facts: Mapping[str, Any] | None = None,
) -> Store:
    """Make a pilot of one generator and two classifiers, each with two checkpoints; return it."""

    def trainings() -> None:
        make_run(store.child("generators/0123456789abcdef"), "generator", images=images)
        for arm in ("baseline", "hydramix"):
            key = "0123456789abcdef" if arm == "hydramix" else None
            make_run(store.child(f"classifiers/{arm}-n5-seed0"), images=images, identity={"generator": key})
        store.put("data/manifest.json", b"{}")
        store.put("data/index.parquet", b"")

    return make_run(store, "pilot", state, facts=facts or {"source": None}, days=days, inside=trainings)


def sign_elsewhere(run: Store, beat: int = 0) -> None:
    """Give a sign of life in a bucket's run as process 1 of the machine `spot-node` does."""
    sign = {"owner": "o", "host": "spot-node", "machine": "another", "pid": 1, "started": 1, "beat": beat}
    run.put("lease/000001.json", json.dumps(sign).encode())


@contextlib.contextmanager
def living_elsewhere(*runs: Store) -> Iterator[None]:
    """Have that machine hold these runs while the block runs."""
    over = threading.Event()

    def live() -> None:
        beat = 0
        while not over.wait(1):
            beat += 1
            for run in runs:
                sign_elsewhere(run, beat)

    for run in runs:
        sign_elsewhere(run)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
