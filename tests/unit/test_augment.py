"""Crop and flip: the same views for images and label maps, each drawn by (seed, sample number, slot) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hydramix_dist.data.augment import Views, apply_views, apply_views_to_maps, draw_views, renumber

sides = st.sampled_from([16, 32, 40])


def ramp(batch: int, channels: int, side: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = torch.arange(batch * channels * side * side) * 7 % 251
    return values.view(batch, channels, side, side).to(dtype)


def padded_crop(image: np.ndarray, oy: int, ox: int, flip: bool) -> np.ndarray:
    """The released augmentation, literally: pad by reflection, cut a window, mirror it."""
    pad = image.shape[-1] // 8
    padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)], mode="reflect")
    height, width = image.shape[1:]
    window = padded[:, oy + pad : oy + pad + height, ox + pad : ox + pad + width]
    return window[:, :, ::-1] if flip else window


@given(side=sides, batch=st.sampled_from([1, 3, 8]), seed=st.integers(0, 99))
def test_a_view_is_a_crop_of_the_reflected_image(side: int, batch: int, seed: int) -> None:
    images = ramp(batch, 3, side)
    views = draw_views(seed, "views", range(batch), 1, side)
    result = apply_views(images, views)
    assert result.dtype == torch.uint8
    for i in range(batch):
        expected = padded_crop(images[i].numpy(), int(views.oy[i]), int(views.ox[i]), bool(views.flip[i]))
        assert np.array_equal(result[i].numpy(), expected)


def test_every_offset_of_the_padding_is_reached() -> None:
    side, pad = 16, 2
    offsets = [(oy, ox, flip) for oy in range(-pad, pad + 1) for ox in range(-pad, pad + 1) for flip in (0, 1)]
    oy, ox, flip = torch.tensor(offsets).unbind(1)
    images = ramp(1, 3, side).expand(len(offsets), 3, side, side)
    result = apply_views(images, Views(oy, ox, flip.bool()))
    for i, (y, x, f) in enumerate(offsets):
        assert np.array_equal(result[i].numpy(), padded_crop(images[i].numpy(), y, x, bool(f)))
    drawn = draw_views(0, "views", range(2000), 1, side)
    assert set(
        zip(drawn.oy.flatten().tolist(), drawn.ox.flatten().tolist(), drawn.flip.int().flatten().tolist(), strict=True)
    ) == set(offsets)


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    views = draw_views(3, "views", range(20_000), 1, 32)
    cells = ((views.oy + 4) * 9 + views.ox + 4) * 2 + views.flip.long()
    assert stats.chisquare(cells.flatten().bincount(minlength=162).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_label_maps_move_with_their_images(dtype: torch.dtype) -> None:
    images = ramp(5, 1, 32)
    maps = images[:, 0].to(dtype)
    views = draw_views(1, "views", range(5), 1, 32)
    moved = apply_views_to_maps(maps, views)
    assert moved.dtype == dtype
    assert torch.equal(moved, apply_views(images, views)[:, 0].to(dtype))


def test_views_of_all_slots_apply_at_once_and_one_slot_can_be_picked() -> None:
    images = ramp(12, 3, 16).view(4, 3, 3, 16, 16)
    views = draw_views(5, "views", range(4), 3, 16)
    together = apply_views(images, views)
    layout = torch.tensor([2, 0, 1, 2])
    rows = torch.arange(4)
    assert torch.equal(apply_views(images[rows, layout], views.at(rows * 3 + layout)), together[rows, layout])
    assert torch.equal(
        apply_views_to_maps(images[rows, layout, 0], views.at(rows * 3 + layout)), together[rows, layout, 0]
    )


@given(number=st.integers(0, 2**40), others=st.lists(st.integers(0, 2**40), max_size=5), slots=st.integers(1, 5))
def test_a_view_depends_on_seed_number_and_slot_alone(number: int, others: list[int], slots: int) -> None:
    alone = draw_views(7, "views", [number], slots, 64)
    among = draw_views(7, "views", [*others, number], slots + 2, 64)
    for one, many in ((alone.oy, among.oy), (alone.ox, among.ox), (alone.flip, among.flip)):
        assert torch.equal(one[0], many[-1, :slots])


def test_slots_seeds_and_purposes_have_draws_of_their_own() -> None:
    draws = [draw_views(s, p, range(200), 2, 64) for s, p in ((0, "views"), (1, "views"), (0, "other"))]
    columns = [d.oy[:, k] for d in draws for k in range(2)]
    for i, one in enumerate(columns):
        for other in columns[:i]:
            assert (one == other).float().mean() < 0.2  # equal by chance: 1 in 17


def test_a_view_kept_as_plain_numbers_reproduces_the_image() -> None:
    images = ramp(3, 3, 32)
    views = draw_views(2, "views", range(3), 1, 32)
    record = [views.oy.tolist(), views.ox.tolist(), views.flip.tolist()]
    again = Views(*(torch.tensor(field) for field in record))
    assert torch.equal(apply_views(images, again), apply_views(images, views))


def test_views_leave_the_global_generators_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    apply_views(ramp(2, 3, 16), draw_views(0, "views", range(2), 1, 16))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before_numpy)


@given(
    maps=st.lists(st.lists(st.integers(0, 40), min_size=6, max_size=6), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.int32, torch.int64, torch.uint8]),
)
def test_renumbering_keeps_order_and_leaves_no_gap(maps: list[list[int]], dtype: torch.dtype) -> None:
    renumbered, counts = renumber(torch.tensor(maps, dtype=dtype).view(len(maps), 2, 3))
    for labels, result, count in zip(maps, renumbered, counts.tolist(), strict=True):
        present = sorted(set(labels))
        assert count == len(present)
        assert result.flatten().tolist() == [present.index(label) for label in labels]
