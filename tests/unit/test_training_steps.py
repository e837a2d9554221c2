"""A step of generator and classifier training: what it is shown, what it computes, and whose weights it changes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydramix_dist.checkpoint import weights_digest
from hydramix_dist.models.generator import Generator
from hydramix_dist.training.engine import TorchEngine
from hydramix_dist.training.generator import generator_identity, generator_key
from hydramix_dist.training.loop import run
from hydramix_dist.training.losses import laplacian_loss

CPU = torch.device("cpu")
Train = Callable[..., dict[str, Any]]


# ---- a generator's step


class Watched:
    """An engine that notes, after each backward pass, which of the given modules' parameters hold a gradient."""

    def __init__(self, engine: Any, modules: Mapping[str, nn.Module], seen: list[dict[str, dict[str, bool]]]) -> None:
        self._engine, self._modules, self._seen = engine, modules, seen
        self.module, self.step, self.full_state = engine.module, engine.step, engine.full_state

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, share: float) -> None:
        self._engine.backward(loss, share)
        self._seen.append(
            {
                name: {key: p.grad is not None and bool(p.grad.any()) for key, p in module.named_parameters()}
                for name, module in self._modules.items()
            }
        )


@pytest.mark.parametrize("decoder_blocks", ["apply", "skip"])
def test_each_phase_teaches_its_own_network_and_all_of_it(tmp_path: Path, decoder_blocks: str) -> None:
    network = {"side": 32, "width": 4, "blocks": 2, "mix_after": "block1", "decoder_blocks": decoder_blocks}
    training = tiny.generator_training(tiny.generator_settings(network=network, images=4))
    modules = {name: engine.module for name, engine in training.engines.items()}
    seen: list[dict[str, dict[str, bool]]] = []
    training.engines = {name: Watched(engine, modules, seen) for name, engine in training.engines.items()}
    with tiny.context(tmp_path, "generator") as context:
        run(training, context, None)
    generator_phase, discriminator_phase = seen
    assert not any(generator_phase["discriminator"].values())
    assert not any(discriminator_phase["generator"].values())
    # A bias that instance norm cancels has no gradient but rounding; every other parameter must learn.
    assert all(learns for name, learns in generator_phase["generator"].items() if "weight" in name)
    assert all(learns for name, learns in discriminator_phase["discriminator"].items() if "weight" in name)
    assert {name for name, p in modules["generator"].named_parameters() if not p.requires_grad} == set(
        generator_phase["generator"]
    ), "while the discriminator learns the generator is frozen"


def sources_of(batch: dict[str, Any]) -> Tensor:
    """The K views that each mix of a generator's batch is made of."""
    found: Tensor = batch["views"][batch["sources"]]
    return found


# What the discriminator is shown without augmentation, so that its loss can be computed again by hand.
RELEASED = {"width": 4, "score": "sigmoid", "augment": False}


def test_discriminator_sees_the_very_mixes_of_the_generator_step_detached() -> None:
    training = tiny.generator_training(tiny.generator_settings(discriminator=RELEASED))
    generator, discriminator = (training.engines[name].module for name in ("generator", "discriminator"))
    calls: list[tuple[str, int]] = []
    assert isinstance(generator, Generator)
    for name, module in (("encode", generator.encoder), ("decode", generator.decoder)):
        module.register_forward_hook(lambda m, args, out, name=name: calls.append((name, len(args[0]))))
    batch = tiny.batch(training, 0)
    x_BKCHW, m_BKhw = sources_of(batch), batch["mask"]
    with torch.no_grad():
        f_BKDhw = torch.stack([generator.encode(x_BKCHW[:, k]) for k in range(3)], 1)
        mixed_BCHW = generator.decode((f_BKDhw * m_BKhw[:, :, None]).sum(1))
    calls.clear()
    generator_phase, discriminator_phase = training.phases
    generator_phase.loss(batch)
    # K + 1 decodes for each mix, in one batch; the discriminator's phase adds none.
    assert calls == [("encode", 4 * 3), ("decode", 4 * (3 + 1))]
    torch.testing.assert_close(batch["mixed"], mixed_BCHW)
    assert not batch["mixed"].requires_grad
    loss, _ = discriminator_phase.loss(batch)
    assert len(calls) == 2
    real, mixed = discriminator(batch["real"]), discriminator(mixed_BCHW)
    torch.testing.assert_close(loss, (real - 1).square().mean() + mixed.square().mean())


def test_group_of_mixes_encodes_and_reconstructs_each_image_once() -> None:
    training = tiny.generator_training(tiny.generator_settings(group=4, batch=8, discriminator=RELEASED))
    generator = training.engines["generator"].module
    assert isinstance(generator, Generator)
    calls: list[int] = []
    for module in (generator.encoder, generator.decoder):
        module.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    batch = tiny.batch(training, 1)
    _, terms = training.phases[0].loss(batch)
    assert calls == [8, 8 + 8], "as many views as mixes; each is decoded once for itself, and once for a mix"
    x_BKCHW = sources_of(batch)
    with torch.no_grad():
        f_BKDhw = torch.stack([generator.encode(x_BKCHW[:, k]) for k in range(3)], 1)
        mixed_BCHW = generator.decode((f_BKDhw * batch["mask"][:, :, None]).sum(1))
        error = F.mse_loss(generator.decode(generator.encode(batch["views"])), batch["views"])
    torch.testing.assert_close(batch["mixed"], mixed_BCHW)
    torch.testing.assert_close(terms["loss_reconstruction"].detach(), 2 * error)


def test_groups_show_every_image_as_lead_once_a_pass_and_do_not_depend_on_the_batch() -> None:
    shots = tiny.shot_set((5, 5))
    small = tiny.generator_training(tiny.generator_settings(group=4, batch=4), shots=shots)
    large = tiny.generator_training(tiny.generator_settings(group=4, batch=8), shots=shots)
    first, second, whole = tiny.batch(small, 4), tiny.batch(small, 5), tiny.batch(large, 2)
    for value in (sources_of, itemgetter("mask"), itemgetter("real")):
        assert torch.equal(torch.cat((value(first), value(second))), value(whole)), value
    composer, order = small._composer, small._order
    rows = [
        composer.compose_groups(order.items(np.array([g])), np.arange(4 * g, 4 * g + 4), 4, g).rows_N for g in range(10)
    ]
    assert sorted(int(group[0]) for group in rows) == list(range(10))
    assert all(len(set(group.tolist())) == 4 for group in rows), "different images"


def test_two_image_loss_is_the_released_one() -> None:
    """docs/method.md, check 8: 1000 (MSE_a + MSE_b) + Lap_a + Lap_b + MSE(D(mix), 1)."""
    mix = {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}}
    settings = tiny.generator_settings(mix=mix, discriminator=RELEASED)
    training = tiny.generator_training(settings)
    generator, discriminator = (training.engines[name].module for name in ("generator", "discriminator"))
    assert isinstance(generator, Generator)
    batch = tiny.batch(training, 3)
    a, b = sources_of(batch).unbind(1)
    m = batch["mask"][:, :1]
    with torch.no_grad():
        f_a, f_b = generator.encode(a), generator.encode(b)
        a_again, b_again, mixed = (generator.decode(f) for f in (f_a, f_b, m * f_a + (1 - m) * f_b))
        score = discriminator(mixed)
        by_hand = (
            1000 * (F.mse_loss(a_again, a) + F.mse_loss(b_again, b))
            + laplacian_loss(a_again, a)
            + laplacian_loss(b_again, b)
            + F.mse_loss(score, torch.ones_like(score))
        )
    total, terms = training.phases[0].loss(batch)
    torch.testing.assert_close(total.detach(), by_hand, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["loss_adversarial"].detach(), F.mse_loss(score, torch.ones_like(score)))


@pytest.mark.parametrize("kind", ["sigmoid", "linear"])
def test_real_images_are_the_sources_and_their_choice_is_per_sample_or_per_step(kind: str) -> None:
    picks: dict[bool, set[tuple[int, ...]]] = {}
    for per_batch in (False, True):
        discriminator = {"width": 4, "score": kind, "augment": True, "real_per_batch": per_batch}
        training = tiny.generator_training(tiny.generator_settings(discriminator=discriminator))
        picks[per_batch] = set()
        for step in range(12):
            batch = tiny.batch(training, step)
            same_BK = (sources_of(batch) == batch["real"][:, None]).flatten(2).all(2)
            assert bool(same_BK.any(1).all())
            picks[per_batch].add(tuple(same_BK.int().argmax(1).tolist()))
    assert all(len(set(row)) == 1 for row in picks[True]) and len(picks[True]) == 3
    assert any(len(set(row)) > 1 for row in picks[False])


def test_rate_drops_at_the_milestones() -> None:
    training = tiny.generator_training(tiny.generator_settings(milestones=[0.25, 0.75], decay=0.1))
    rates = [training.phases[0].lr(done) for done in (0.0, 0.24, 0.25, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6])
    cosine = tiny.classifier_training().phases[0].lr
    assert [cosine(0.0), cosine(0.5), cosine(1.0)] == pytest.approx([0.05, 0.025, 0.0])


def test_overfits_two_classes_of_five_images(tmp_path: Path) -> None:
    """docs/method.md, check 9. Every image's mean colour, alone, would leave a reconstruction term of 0.31."""
    settings = tiny.generator_settings(
        network={"side": 32, "width": 12, "blocks": 2, "mix_after": "block1"},
        mix={"count": 2},
        batch=4,
        images=4 * 200,
        optimizer={"lr": 5e-3},
    )
    tiny.run_generator(tmp_path, settings, shots=tiny.shot_set((5, 5)))
    curve = [record["loss_reconstruction"] for record in tiny.metrics(tmp_path) if "loss_reconstruction" in record]
    assert curve[-1] < 0.04


def test_key_names_everything_the_generator_depends_on() -> None:
    def key(data: str = "d", ids: tuple[str, ...] = ("a", "b"), seed: int = 0, **changes: Any) -> str:
        return generator_key(generator_identity(data, ids, seed, tiny.generator_settings(**changes)))

    assert key() == key()
    others = [
        key(data="e"),
        key(ids=("b", "a")),
        key(ids=("a",)),
        key(seed=1),
        key(mix={"count": 4}),
        key(mix={"count": 3, "mask": {"kind": "grid"}}),
        key(mix={"count": 3, "mask": {"downsample": "area"}}),
        key(images=52),
        key(segments={"scale": 61.0}),
        key(loss={"adversarial": 0.0}),
    ]
    assert len({key(), *others}) == len(others) + 1


# ---- what a step is shown


@pytest.mark.parametrize(
    "mix",
    [
        {"count": 3},
        {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}},
        {"count": 4, "mask": {"kind": "grid", "downsample": "area"}},
        {"count": 1},
        {"count": 5, "mask": {"kind": "segments-contiguous"}},
    ],
    ids=str,
)
def test_generator_samples_do_not_depend_on_batch_or_order(mix: dict[str, Any]) -> None:
    small = tiny.generator_training(tiny.generator_settings(mix=mix, batch=3))
    large = tiny.generator_training(tiny.generator_settings(mix=mix, batch=6))
    for step in (2, 0):
        first, second, whole = tiny.batch(small, 2 * step), tiny.batch(small, 2 * step + 1), tiny.batch(large, step)
        for value in (sources_of, itemgetter("mask"), itemgetter("real")):
            assert torch.equal(torch.cat((value(first), value(second))), value(whole)), value


def test_classifier_samples_do_not_depend_on_batch_or_order() -> None:
    for share in (0.0, 1.0):
        small = tiny.classifier_training(tiny.classifier_settings(batch=3, mix_share=share))
        large = tiny.classifier_training(tiny.classifier_settings(batch=6, mix_share=share))
        for step in (3, 0):
            first, second, whole = tiny.batch(small, 2 * step), tiny.batch(small, 2 * step + 1), tiny.batch(large, step)
            assert torch.equal(torch.cat((first["labels"], second["labels"])), whole["labels"])
            # Convolutions of another batch size may differ in the last bits; the draws would differ in the first.
            torch.testing.assert_close(torch.cat((first["images"], second["images"])), whole["images"])


def test_every_image_is_shown_once_a_pass() -> None:
    training = tiny.classifier_training(tiny.classifier_settings(batch=2), tiny.classifier_inputs(mixed=False))
    labels = torch.cat([tiny.batch(training, step)["labels"] for step in range(3)])
    assert labels.bincount().tolist() == [3, 3]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_mixed_batches_is_honoured_batch_by_batch(share: float) -> None:
    settings = tiny.classifier_settings(batch=2, mix_share=share, images=400)
    training, plain = (
        tiny.classifier_training(settings),
        tiny.classifier_training(settings, tiny.classifier_inputs(mixed=False)),
    )
    steps = 200
    mixed = [not torch.equal(tiny.batch(training, s)["images"], tiny.batch(plain, s)["images"]) for s in range(steps)]
    # Four standard deviations of a fair draw; none at 0 and 1.
    assert abs(sum(mixed) - share * steps) <= 4 * math.sqrt(steps * share * (1 - share))


def test_no_batch_is_mixed_after_the_share_of_the_training_that_the_settings_say() -> None:
    settings = tiny.classifier_settings(batch=2, mix_share=1.0, mix_until=0.7, images=40)
    plain = tiny.classifier_training(settings, tiny.classifier_inputs(mixed=False))
    training = tiny.classifier_training(settings)
    mixed = [not torch.equal(tiny.batch(training, s)["images"], tiny.batch(plain, s)["images"]) for s in range(20)]
    assert mixed == [True] * 14 + [False] * 6


def test_mixed_batches_carry_the_anchors_labels_and_no_gradient() -> None:
    training = tiny.classifier_training(tiny.classifier_settings(mix_share=1.0))
    plain = tiny.classifier_training(tiny.classifier_settings(mix_share=0.0))
    batch = tiny.batch(training, 4)
    assert torch.equal(batch["labels"], tiny.batch(plain, 4)["labels"])
    assert batch["images"].shape == (4, 3, 16, 16) and batch["images"].dtype == torch.float32
    assert not batch["images"].requires_grad and float(batch["images"].abs().max()) <= 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("per_class", [(1, 1), (1, 4), (2, 3)], ids=str)
def test_small_classes_and_odd_batches_train(tmp_path: Path, per_class: tuple[int, ...], batch: int) -> None:
    shots = tiny.shot_set(per_class)
    settings = tiny.generator_settings(batch=batch, images=2 * batch)
    assert tiny.run_generator(tmp_path / "g", settings, tiny.FAST, shots=shots)["images_seen"] == 2 * batch
    inputs = dataclasses.replace(
        tiny.classifier_inputs(),
        shots=tiny.shot_set(per_class, side=16, segments=False),
        mixer=tiny.mixer(shots, settings, bf16=True),
    )
    odd = tiny.classifier_settings(batch=batch + 2, images=2 * (batch + 2) - 1, mix_share=1.0)
    result = tiny.run_classifier(tmp_path / "c", odd, tiny.FAST, inputs=inputs)
    assert result["images_seen"] == 2 * (batch + 2), "a last batch is a whole one"
    assert all(0 <= label < 2 for label in result["predictions"])


def test_one_image_a_class_is_mixed_from_k_views_of_it() -> None:
    training = tiny.generator_training(shots=tiny.shot_set((1, 1)))
    sources = torch.cat([sources_of(tiny.batch(training, step)) for step in range(4)])
    differ = (sources[:, 0] != sources[:, 1]).flatten(1).any(1)
    assert int(differ.sum()) > len(sources) // 2, "views of one image differ"


def test_labels_and_losses_keep_their_types_under_bf16() -> None:
    training = tiny.classifier_training(runtime=tiny.FAST)
    batch = tiny.batch(training, 0)
    assert batch["labels"].dtype == torch.int64
    loss, terms = training.phases[0].loss(batch)
    assert loss.dtype == torch.float32 and terms["train_accuracy_ratio"].dtype == torch.float32
    generator = tiny.generator_training(runtime=tiny.FAST)
    batch = tiny.batch(generator, 0)
    for phase in generator.phases:
        total, terms = phase.loss(batch)
        assert {t.dtype for t in (total, *terms.values())} == {torch.float32}
    assert {p.dtype for engine in generator.engines.values() for p in engine.module.parameters()} == {torch.float32}


def test_bf16_is_near_full_precision() -> None:
    totals = [
        training.phases[0].loss(tiny.batch(training, 0))[0].item()
        for training in (tiny.generator_training(), tiny.generator_training(runtime=tiny.FAST))
    ]
    assert totals[0] != totals[1] and totals[1] == pytest.approx(totals[0], rel=0.02)


def test_dropout_is_drawn_anew_in_each_step_and_again_the_same_when_repeated() -> None:
    training = tiny.classifier_training(tiny.classifier_settings(mix_share=0.0))

    def loss(step: int) -> float:
        return training.phases[0].loss(tiny.batch(training, 0) | {"step": step})[0].item()

    assert loss(3) == loss(3) != loss(4)


def test_weights_begin_from_the_seed_alone() -> None:
    torch.manual_seed(99)
    first = tiny.classifier_training().engines["classifier"].full_state()
    second = tiny.classifier_training().engines["classifier"].full_state()
    assert weights_digest(first.weights) == weights_digest(second.weights)
    arms = tiny.classifier_training(inputs=tiny.classifier_inputs(mixed=False)).engines["classifier"].full_state()
    assert weights_digest(arms.weights) == weights_digest(first.weights), "arms of a seed begin alike"
    assert isinstance(tiny.classifier_training().engines["classifier"], TorchEngine)
