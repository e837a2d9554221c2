"""The benchmark of the training step compares equals: its rendering of the released procedure learns what ours does."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from hydramix_dist.data.segmentation import segment
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.pixels import to_float
from hydramix_dist.training.generator import GeneratorTraining

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common import Times, gigaflop, interleaved, one_step
from released import ReleasedTraining, segment_augmented

CPU = torch.device("cpu")
MIX = {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}}


def both(wiring: str) -> tuple[GeneratorTraining, ReleasedTraining]:
    """Return our training and the released one, of equal weights."""
    network = {"side": 32, "width": 4, "blocks": 2, "mix_after": "block1", "decoder_blocks": wiring}
    # Terms of like size, so that a difference in any one shows.
    weights = {"reconstruction": 2.0, "perceptual": 3.0, "adversarial": 5.0}
    settings = tiny.generator_settings(network=network, mix=MIX, loss=weights)
    ours = tiny.generator_training(settings)
    released = ReleasedTraining(settings, tiny.RUNTIME, tiny.shot_set(), 6, CPU)
    for name, engine in released.engines.items():
        engine.module.load_state_dict(ours.engines[name].module.state_dict())
    return ours, released


def as_released(batch: dict[str, Any]) -> dict[str, Any]:
    """Return our batch in the released form; both of its phases see the mask that ours has."""
    return {
        "sources": batch["views"][batch["sources"]],
        "mask": batch["mask"],
        "mask_again": batch["mask"],
        "real": batch["real"],
    }


def gradients(training: GeneratorTraining | ReleasedTraining, phase: int, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the loss of a phase and the gradients of the network that learns in it, by name."""
    name = training.phases[phase].engine
    for other, engine in training.engines.items():
        engine.module.requires_grad_(other == name)
    total, _ = training.phases[phase].loss(batch)
    total.backward()
    found = {key: p.grad for key, p in training.engines[name].module.named_parameters() if p.grad is not None}
    assert found
    return {"loss": total.detach()} | found


@pytest.mark.parametrize("wiring", ["apply", "skip"])
def test_released_step_has_our_losses_and_gradients(wiring: str) -> None:
    ours, released = both(wiring)
    batch = tiny.batch(ours, 2)
    theirs = as_released(batch)
    for phase in (0, 1):
        expected, found = gradients(ours, phase, batch), gradients(released, phase, theirs)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_released_step_decodes_nine_times_and_again_for_the_discriminator() -> None:
    _, released = both("apply")
    generator = released.engines["generator"].module
    assert isinstance(generator, Generator)
    calls: list[tuple[str, int]] = []
    for name, module in (("encode", generator.encoder), ("decode", generator.decoder)):
        module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, len(args[0]))))
    batch = tiny.batch(released, 0)
    released.phases[0].loss(batch)
    assert calls == [("encode", 4)] * 2 + [("decode", 4)] * 9
    calls.clear()
    released.phases[1].loss(batch)
    assert calls == [("encode", 4)] * 2 + [("decode", 4)] * 3


def test_released_wiring_computes_the_blocks_whose_result_it_drops() -> None:
    _, live = both("apply")
    _, dropping = both("skip")
    with torch.no_grad():
        work = [gigaflop(lambda number, t=t: t.phases[0].loss(tiny.batch(t, number))) for t in (live, dropping)]
    assert work[0] == work[1]


def test_released_masks_are_made_of_the_augmented_second_images_segments_and_drawn_twice() -> None:
    _, released = both("apply")
    differ = False
    for batch in (tiny.batch(released, step) for step in range(6)):
        maps = segment_augmented(batch["sources"][:, 1], tiny.generator_settings().segments)
        cells = F.interpolate(maps[:, None].float(), 8, mode="nearest")[:, 0]
        for mask in (batch["mask"], batch["mask_again"]):
            assert mask.shape == (4, 2, 8, 8) and bool((mask.sum(1) == 1).all())
            for of_a, labels in zip(mask[:, 0], cells, strict=True):
                assert all(len(of_a[labels == label].unique()) == 1 for label in labels.unique())
        differ = differ or not torch.equal(batch["mask"], batch["mask_again"])
    assert differ


def test_augmented_images_are_segmented_as_stored_ones_are() -> None:
    images = F.interpolate(tiny.pictures(3, 8), 32).byte()
    settings = tiny.generator_settings(segments={"scale": 10.0, "min_size": 8}).segments
    maps = segment_augmented(to_float(images), settings)
    assert int(maps.max()) > 2
    for image, found in zip(images, maps, strict=True):
        expected = segment(image.permute(1, 2, 0).numpy(), 32, settings)
        assert torch.equal(found, torch.from_numpy(expected.astype("int64")))


def test_arithmetic_is_that_of_the_layer_shapes() -> None:
    """One image of side s through an encoder with its backward, by hand: 2 operations for each weight and cell."""
    network = {"side": 32, "width": 4, "downsamplings": 1, "blocks": 0, "mix_after": "down1"}
    encoder = Generator(tiny.generator_settings(network=network).network).encoder
    x_BCHW = torch.zeros(1, 3, 32, 32)
    stem, down = 2 * 32 * 32 * 4 * 3 * 49, 2 * 16 * 16 * 8 * 4 * 9
    # Backward: each convolution's weights, and the input of the second one.
    by_hand = 2 * stem + 3 * down
    assert gigaflop(lambda number: encoder(x_BCHW).sum().backward()) * 1e9 == pytest.approx(by_hand)


def test_steps_take_turns_and_times_are_milliseconds() -> None:
    turns: list[tuple[str, int]] = []
    steps = {name: lambda number, name=name: turns.append((name, number)) for name in ("a", "b")}
    times = interleaved(steps, 2, CPU)
    assert turns == [(name, number) for number in range(3) for name in ("a", "b")]
    assert all(t.wall.shape == t.cpu.shape == (2,) and float(t.wall.max()) < 1000 for t in times.values())


def test_times_are_reckoned_with_round_by_round() -> None:
    slow, fast = Times(*np.array([[4.0, 9.0], [2.0, 8.0]])), Times(*np.array([[2.0, 3.0], [1.0, 2.0]]))
    assert [slow.over(fast).wall.tolist(), slow.over(fast).cpu.tolist()] == [[2.0, 3.0], [2.0, 4.0]]
    assert [(slow - fast).wall.tolist(), (slow - fast).cpu.tolist()] == [[2.0, 6.0], [1.0, 6.0]]
    mean = slow * 0.75 + fast * 0.25
    assert [mean.wall.tolist(), mean.cpu.tolist()] == [[3.5, 7.5], [1.75, 6.5]]


@pytest.mark.parametrize("wiring", ["apply", "skip"])
def test_released_training_learns(wiring: str) -> None:
    _, released = both(wiring)
    step = one_step(released)
    before = {name: engine.full_state() for name, engine in released.engines.items()}
    step(0)
    for name, engine in released.engines.items():
        after = engine.full_state().weights
        assert any(not torch.equal(value, after[key]) for key, value in before[name].weights.items()), name
