"""TrivialAugment: torchvision's operations to the bit, our draws, label maps that follow."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from skimage import data as photographs
from torch import Tensor

from hydramix_dist.data.torchvision_compat import transforms_functional
from hydramix_dist.data.trivial_augment import (
    OPERATIONS,
    TrivialDraws,
    apply_trivial,
    apply_trivial_to_maps,
    draw_trivial,
)

LEVELS = range(31)
GEOMETRIC = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """A photograph's patches, noise, a flat image and one of little contrast; uint8 [6, 3, 32, 32]."""
    photograph = torch.from_numpy(photographs.astronaut().copy()).permute(2, 0, 1)
    patches = [photograph[:, y : y + 32, x : x + 32] for y, x in ((20, 200), (150, 230), (400, 60))]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
    return torch.stack([*patches, noise, torch.full_like(noise, 77), noise // 8 + 100])


def space_of(version: str) -> tuple[torch.nn.Module, dict[str, tuple[bool, bool]]]:
    """torchvision's class, and for each of its operations in order: has it levels, has it a sign."""
    transforms_functional()  # opens torchvision where its native operators do not load
    module = importlib.import_module(version)
    transform = module.TrivialAugmentWide()
    if version.endswith("v2"):
        space = {name: (make(31, 32, 32), sign) for name, (make, sign) in transform._AUGMENTATION_SPACE.items()}
    else:
        space = transform._augmentation_space(31)
    return transform, {name: (m is not None and m.ndim > 0, sign) for name, (m, sign) in space.items()}


def settings_of(name: str) -> list[tuple[int, bool]]:
    operation = next(entry for entry in OPERATIONS if entry.name == name)
    levels = LEVELS if operation.magnitudes else [0]
    return [(level, negative) for level in levels for negative in ((False, True) if operation.signed else (False,))]


def draws_for(number: int, level: int, negative: bool, batch: int) -> TrivialDraws:
    return TrivialDraws(
        torch.full((batch,), number), torch.full((batch,), level), torch.full((batch,), negative, dtype=torch.bool)
    )


def pinned(
    monkeypatch: pytest.MonkeyPatch, transform: torch.nn.Module, image: Tensor, integers: list[int], coin: float
) -> Tensor:
    """The class's own forward pass, its random draws replaced by the ones given."""
    queue: Iterator[int] = iter(integers)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *args, **kwargs: torch.tensor(next(queue)))
        patch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(coin))
        result: Tensor = transform(image)
    assert next(queue, None) is None, "the class drew less than was laid out"
    return result


def test_the_space_is_torchvisions() -> None:
    for version in ("torchvision.transforms.v2", "torchvision.transforms"):
        _, space = space_of(version)
        assert space == {entry.name: (bool(entry.magnitudes), entry.signed) for entry in OPERATIONS}
        assert list(space) == [entry.name for entry in OPERATIONS]
    assert {entry.name for entry in OPERATIONS if entry.geometric} == GEOMETRIC


@pytest.mark.parametrize("number", range(14), ids=lambda i: OPERATIONS[i].name)
def test_every_level_and_sign_equals_torchvisions_class(
    number: int, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, space = space_of("torchvision.transforms.v2")
    has_level, _ = space[OPERATIONS[number].name]
    for level, negative in settings_of(OPERATIONS[number].name):
        queue = [number, level] if has_level else [number]
        expected = [pinned(monkeypatch, transform, image, queue, 0.4 if negative else 0.6) for image in images]
        result = apply_trivial(images, draws_for(number, level, negative, len(images)))
        assert torch.equal(result, torch.stack(expected)), (OPERATIONS[number].name, level, negative)


@pytest.mark.parametrize("number", range(14), ids=lambda i: OPERATIONS[i].name)
def test_the_older_class_differs_by_rounding_only(number: int, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # torchvision's two generations round three operations differently and put Solarize's threshold an ulp apart.
    name = OPERATIONS[number].name
    transform, space = space_of("torchvision.transforms")
    for level, negative in settings_of(name):
        queue = [number, *([level] if space[name][0] else []), *([int(negative)] if space[name][1] else [])]
        expected = torch.stack([pinned(monkeypatch, transform, image, queue, 0.0) for image in images])
        result = apply_trivial(images, draws_for(number, level, negative, len(images)))
        difference = (result.int() - expected.int()).abs()
        if name == "Solarize":
            threshold = 255.0 * (30 - level) / 30
            assert ((difference == 0) | (images == threshold)).all(), level
        else:
            assert difference.max() <= (1 if name in {"Color", "Sharpness", "AutoContrast"} else 0), (level, negative)


def test_a_mixed_batch_equals_its_images_one_by_one(images: Tensor) -> None:
    many = images.repeat(20, 1, 1, 1)
    draws = draw_trivial(0, "trivial", range(len(many)), 1)
    together = apply_trivial(many, draws)
    for i in range(len(many)):
        alone = TrivialDraws(draws.operation[i], draws.level[i], draws.negative[i])
        assert torch.equal(apply_trivial(many[i : i + 1], alone)[0], together[i])


def test_the_input_is_not_changed(images: Tensor) -> None:
    kept = images.clone()
    apply_trivial(images, draw_trivial(0, "trivial", range(len(images)), 1))
    assert torch.equal(images, kept)


def test_slots_of_a_mix_apply_at_once_and_one_can_be_picked(images: Tensor) -> None:
    images_BKCHW = images.view(2, 3, 3, 32, 32)
    draws = draw_trivial(4, "trivial", range(2), 3)
    together = apply_trivial(images_BKCHW, draws)
    layout, rows = torch.tensor([2, 0]), torch.arange(2)
    assert torch.equal(apply_trivial(images_BKCHW[rows, layout], draws.at(rows * 3 + layout)), together[rows, layout])


def test_operations_levels_and_signs_are_equally_likely() -> None:
    draws = draw_trivial(11, "trivial", range(60_000), 1)
    operation, level, negative = (field.flatten() for field in (draws.operation, draws.level, draws.negative))
    assert stats.chisquare(operation.bincount(minlength=14).numpy()).pvalue > 1e-4
    for number, entry in enumerate(OPERATIONS):
        levels, signs = level[operation == number], negative[operation == number]
        if not entry.magnitudes:
            assert not levels.any()
        elif entry.signed:
            cells = levels * 2 + signs
            assert stats.chisquare(cells.bincount(minlength=62).numpy()).pvalue > 1e-4
        else:
            assert stats.chisquare(levels.bincount(minlength=31).numpy()).pvalue > 1e-4
        if not entry.signed:
            assert not signs.any()


@given(number=st.integers(0, 2**40), others=st.lists(st.integers(0, 2**40), max_size=5), slots=st.integers(1, 4))
def test_a_draw_depends_on_seed_number_and_slot_alone(number: int, others: list[int], slots: int) -> None:
    alone = draw_trivial(7, "trivial", [number], slots)
    among = draw_trivial(7, "trivial", [*others, number], slots + 1)
    for one, many in (
        (alone.operation, among.operation),
        (alone.level, among.level),
        (alone.negative, among.negative),
    ):
        assert torch.equal(one[0], many[-1, :slots])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("number", range(14), ids=lambda i: OPERATIONS[i].name)
def test_label_maps_follow_the_geometric_operations(number: int, dtype: torch.dtype) -> None:
    labels = F.interpolate(torch.arange(36.0).view(1, 1, 6, 6), size=32)[0, 0].to(dtype)
    for level, negative in settings_of(OPERATIONS[number].name):
        draws = draws_for(number, level, negative, 1)
        moved = apply_trivial_to_maps(labels[None], draws)
        assert moved.dtype == dtype
        if OPERATIONS[number].name in GEOMETRIC:
            # An image that shows the labels: black is where nothing was moved to.
            image = (labels + 1).to(torch.uint8).expand(1, 3, 32, 32)
            assert torch.equal(moved, apply_trivial(image, draws)[:, 0].to(dtype))
        else:
            assert torch.equal(moved, labels[None] + 1)


def test_the_uncovered_area_is_a_label_of_its_own() -> None:
    right_by_eight = draws_for(3, 8, False, 1)  # TranslateX, 8 * 32 / 30 = 8.5 pixels, cut to 8
    moved = apply_trivial_to_maps(torch.zeros(1, 32, 32, dtype=torch.int32), right_by_eight)
    assert (moved[..., :8] == 0).all()
    assert (moved[..., 8:] == 1).all()


def test_many_labels_survive_the_move_exactly() -> None:
    labels = torch.arange(60_000, 60_000 + 1024, dtype=torch.int32).view(1, 32, 32)
    moved = apply_trivial_to_maps(labels, draws_for(5, 12, True, 1))  # Rotate
    assert set(moved.flatten().tolist()) <= {0, *(labels.flatten() + 1).tolist()}
    assert len(moved.unique()) > 500


def test_draws_leave_the_global_generators_alone(images: Tensor) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    apply_trivial(images, draw_trivial(0, "trivial", range(len(images)), 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before_numpy)
