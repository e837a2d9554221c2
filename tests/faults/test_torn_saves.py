"""A training whose process ends at any write it makes goes on to the same weights, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from hydramix_dist.checkpoint import load_newest, weights_digest
from hydramix_dist.store import Store

RUNTIME = tiny.RUNTIME.model_copy(update={"checkpoints": 3, "keep": 1})
TRAININGS: dict[str, Callable[..., dict[str, Any]]] = {
    "generator": lambda store: tiny.run_generator(store, tiny.generator_settings(batch=2, images=6), RUNTIME),
    "classifier": lambda store: tiny.run_classifier(store, tiny.classifier_settings(batch=2, images=6), RUNTIME),
}


def weights(folder: Path) -> dict[str, str]:
    checkpoint = load_newest(Store(folder))
    assert checkpoint is not None and checkpoint.images == 6
    return {name: weights_digest(state.weights) for name, state in checkpoint.engines.items()}


@pytest.mark.parametrize("role", ["generator", pytest.param("classifier", marks=pytest.mark.full)])
def test_torn_at_every_write(tmp_path: Path, role: str) -> None:
    train = TRAININGS[role]
    undisturbed = tiny.TornStore(tmp_path / "undisturbed", whole=-1)
    train(undisturbed)
    expected = weights(tmp_path / "undisturbed")
    assert undisturbed.done > 3 * 3, "three checkpoints of several files each, removals, status and result"
    for whole in range(undisturbed.done):
        folder = tmp_path / f"torn-{whole}"
        with pytest.raises(tiny.TornError):
            train(tiny.TornStore(folder, whole))
        load_newest(Store(folder))  # a whole one or none; never an answer that nothing is whole
        train(Store(folder))
        assert weights(folder) == expected, f"torn before write {whole}"


@pytest.mark.full
@pytest.mark.parametrize("runtime", [tiny.RUNTIME, tiny.FAST], ids=["fp32", "bf16-channels-last"])
@pytest.mark.parametrize("role", ["generator", "classifier"])
def test_stopped_at_every_step(tmp_path: Path, role: str, runtime: Any) -> None:
    train = {"generator": tiny.run_generator, "classifier": tiny.run_classifier}[role]
    digests = set()
    for step in range(13):
        folder = tmp_path / str(step)
        if step:
            tiny.until_interrupted(lambda f=folder, s=step: train(f, runtime=runtime, should_stop=tiny.stops_after(s)))
        train(folder, runtime=runtime)
        checkpoint = load_newest(Store(folder))
        assert checkpoint is not None
        digests.add(tuple(weights_digest(state.weights) for state in checkpoint.engines.values()))
    assert len(digests) == 1
