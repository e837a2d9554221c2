"""Masks: a partition of unity at every cell, drawn by the declared rules, each from its own sample number."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hydramix_dist.config.schema import MaskKind, MaskSettings, MixSettings
from hydramix_dist.mixing.masks import Regions, draw_regions, masks_from_regions

GRIDS: tuple[MaskKind, ...] = ("grid", "chimera-grid")
SEGMENTS: tuple[MaskKind, ...] = ("segments-independent", "segments-contiguous", "chimera-segments")
Downsample = Literal["nearest", "area"]
KINDS = (*GRIDS, *SEGMENTS)


def mix_of(kind: MaskKind, count: int = 2, downsample: Downsample = "nearest", grid: int = 4) -> MixSettings:
    return MixSettings(count=count, mask=MaskSettings(kind=kind, downsample=downsample, grid=grid))


def draw_masks(
    segments_BHW: Tensor | None, mix: MixSettings, numbers: range | list[int], seed: int, step: int, feature_side: int
) -> Tensor:
    """The two steps in one, as the composer takes them."""
    regions = draw_regions(segments_BHW, mix, numbers, seed, step, feature_side)
    return masks_from_regions(regions, mix, feature_side)


def draw_sources(
    segments_BHW: Tensor | None, mix: MixSettings, numbers: range, seed: int, step: int, feature_side: int
) -> Tensor:
    """The source of each pixel, where every region has one."""
    regions = draw_regions(segments_BHW, mix, numbers, seed, step, feature_side)
    assert regions.weights_BLK is None
    return regions.map_BHW


def blocks(batch: int, side: int, labels: int, first: int = 0) -> Tensor:
    """Label maps of raster-ordered blocks; labels 0..n-1 are all present, n (1 to `labels`) differs from map to map."""
    pixels = torch.arange(side * side).view(1, side, side)
    counts = (torch.arange(batch).view(-1, 1, 1) + first) % labels + 1
    return (pixels * counts // (side * side)).int()


def row_of_labels(batch: int, labels: int) -> Tensor:
    """Maps of one pixel a label, so that a source map is the table of sources by label."""
    return torch.arange(labels).expand(batch, 1, labels)


@pytest.mark.parametrize("downsample", ["nearest", "area"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "side", "feature_side"), [(1, 32, 8), (3, 64, 16), (5, 96, 24), (2, 32, 12)])
def test_masks_sum_to_one_at_every_cell(
    kind: MaskKind, downsample: Downsample, batch: int, side: int, feature_side: int
) -> None:
    for count in (2,) if kind.startswith("chimera") else (1, 2, 3, 5):
        mix = mix_of(kind, count, downsample)
        segments = None if kind in GRIDS else blocks(batch, side, 9)
        mask = draw_masks(segments, mix, range(batch), 0, 0, feature_side)
        assert mask.shape == (batch, count, feature_side, feature_side)
        assert mask.dtype == torch.float32
        assert mask.min() >= 0
        torch.testing.assert_close(mask.sum(1), torch.ones(batch, feature_side, feature_side))
        if downsample == "nearest":
            assert torch.equal(mask.amax(1), torch.ones(batch, feature_side, feature_side))
            assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_area_masks_take_values_between() -> None:
    for kind in ("segments-independent", "grid"):
        mask = draw_masks(blocks(8, 32, 9, 1), mix_of(kind, 3, "area"), range(8), 0, 0, 8)
        assert ((mask > 0) & (mask < 1)).any()


def test_hard_masks_follow_torchs_nearest_interpolation() -> None:
    segments = blocks(6, 32, 30, 12)
    mix = mix_of("segments-independent", 3)
    sources = draw_sources(segments, mix, range(6), 0, 0, 12)
    for feature_side in (8, 12, 32):
        mask = masks_from_regions(Regions(sources, None), mix, feature_side)
        expected = F.interpolate(sources[:, None].float(), size=feature_side, mode="nearest")[:, 0].long()
        assert torch.equal(mask.argmax(1), expected)


def test_area_masks_are_the_shares_of_the_box() -> None:
    mix = mix_of("segments-independent", 3, "area")
    sources = draw_sources(blocks(4, 32, 30, 12), mix, range(4), 0, 0, 8)
    mask = masks_from_regions(Regions(sources, None), mix, 8)
    for b, y, x in ((0, 0, 0), (1, 3, 5), (3, 7, 7)):
        box = sources[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten().tolist()
        assert mask[b, :, y, x].tolist() == [box.count(k) / 16 for k in range(3)]


@pytest.mark.parametrize("downsample", ["nearest", "area"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_regions_reproduce_the_mask(kind: MaskKind, downsample: Downsample) -> None:
    mix, segments = mix_of(kind, 2, downsample), blocks(3, 32, 9)
    sources = draw_sources(segments, mix, range(3), 0, 5, 8)
    kept = Regions(torch.tensor(sources.tolist(), dtype=torch.uint8), None)  # as a record would hold it
    assert torch.equal(masks_from_regions(kept, mix, 8), draw_masks(segments, mix, range(3), 0, 5, 8))


@given(
    kind=st.sampled_from(KINDS),
    number=st.integers(0, 2**40),
    others=st.lists(st.integers(0, 2**40), max_size=4),
    labels=st.integers(1, 40),
    step=st.integers(0, 2**40),
    downsample=st.sampled_from(["nearest", "area"]),
)
def test_a_mask_does_not_depend_on_the_rest_of_its_batch(
    kind: MaskKind, number: int, others: list[int], labels: int, step: int, downsample: Downsample
) -> None:
    mix = mix_of(kind, 2 if kind.startswith("chimera") else 3, downsample)
    segments = torch.cat([blocks(len(others), 32, 60, labels), blocks(1, 32, 40, labels - 1)])
    among = draw_masks(segments, mix, [*others, number], 3, step, 8)
    assert torch.equal(draw_masks(segments[-1:], mix, [number], 3, step, 8)[0], among[-1])


@pytest.mark.parametrize("kind", SEGMENTS)
def test_a_map_of_few_segments_is_masked_alike_beside_one_of_many(kind: MaskKind) -> None:
    # Two segments fall to one source half of the time, so the redraw must not look at labels of other maps.
    few, many = blocks(300, 16, 2), blocks(1, 16, 60, 59)
    among = draw_masks(torch.cat([few, many]), mix_of(kind), range(301), 0, 0, 16)
    assert torch.equal(draw_masks(few, mix_of(kind), range(300), 0, 0, 16), among[:300])


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_matters_to_the_chimera_grid_alone(kind: MaskKind) -> None:
    segments = blocks(16, 32, 9)
    masks = [draw_masks(segments, mix_of(kind), range(16), 0, step, 16) for step in range(8)]
    same = all(torch.equal(masks[0], mask) for mask in masks)
    assert same == (kind != "chimera-grid")


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_numbers_give_other_masks(kind: MaskKind) -> None:
    segments = blocks(1, 32, 12, 11).expand(40, 32, 32)
    mask = draw_masks(segments, mix_of(kind), range(40), 0, 0, 16)
    other = draw_masks(segments, mix_of(kind), range(40), 1, 0, 16)
    assert len({tuple(m.flatten().tolist()) for m in mask}) > 15
    assert (mask != other).flatten(1).any(1).float().mean() > 0.7


@pytest.mark.parametrize("kind", SEGMENTS)
def test_labels_of_any_dtype_and_with_gaps_give_the_same_mask(kind: MaskKind) -> None:
    segments = blocks(4, 32, 7, 3)
    expected = draw_masks(segments, mix_of(kind), range(4), 0, 0, 8)
    for other in (segments.long(), segments.to(torch.uint8), segments.short() * 3 + 2):
        assert torch.equal(draw_masks(other, mix_of(kind), range(4), 0, 0, 8), expected)


def test_a_segment_kind_without_segments_is_refused() -> None:
    with pytest.raises(ValueError, match="segments of the layout image"):
        draw_masks(None, mix_of("segments-independent"), range(2), 0, 0, 8)


# Shares.


@pytest.mark.parametrize("downsample", ["nearest", "area"])
@pytest.mark.parametrize("kind", ["whole", "grid", "segments-independent"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shares_sum_to_one_and_are_constant_on_a_region(kind: MaskKind, downsample: Downsample, count: int) -> None:
    mix = MixSettings(count=count, mask=MaskSettings(kind=kind, assign="shares", downsample=downsample))
    segments = blocks(6, 32, 9, 2)
    regions = draw_regions(segments, mix, range(6), 0, 0, 8)
    assert regions.weights_BLK is not None
    torch.testing.assert_close(regions.weights_BLK.sum(2), torch.ones(regions.weights_BLK.shape[:2]))
    mask = masks_from_regions(regions, mix, 8)
    assert mask.shape == (6, count, 8, 8) and mask.dtype == torch.float32 and mask.min() >= 0
    torch.testing.assert_close(mask.sum(1), torch.ones(6, 8, 8))
    if downsample == "nearest":
        cells = F.interpolate(regions.map_BHW[:, None].float(), size=8, mode="nearest")[:, 0].long()
        for b, y, x in ((0, 0, 0), (3, 7, 2), (5, 4, 4)):
            assert torch.equal(mask[b, :, y, x], regions.weights_BLK[b, cells[b, y, x]])


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_uniform_on_the_simplex(count: int) -> None:
    mix = MixSettings(count=count, mask=MaskSettings(kind="whole", assign="shares"))
    shares = draw_masks(None, mix, range(4000), 0, 0, 4)[:, :, 0, 0].numpy()
    for k in range(count):  # each coordinate of a uniform point on the simplex is Beta(1, K - 1)
        assert stats.kstest(shares[:, k], stats.beta(1, count - 1).cdf).pvalue > 1e-4


def test_a_whole_image_without_shares_comes_from_one_source() -> None:
    mask = draw_masks(None, mix_of("whole", 3), range(600), 0, 0, 4)
    assert torch.equal(mask.flatten(2).amax(2), mask.flatten(2).amin(2))
    assert stats.chisquare(mask[:, :, 0, 0].sum(0).numpy()).pvalue > 1e-4


# The grid kinds.


def cells_of(side: int, grid: int, oy: int, ox: int) -> list[list[tuple[int, int]]]:
    """The grid cell of each pixel, literally: enlarge to side + p by nearest interpolation, crop at (oy, ox)."""
    enlarged = side + side // grid
    line = [math.floor(Fraction(i * grid, enlarged)) for i in range(enlarged)]
    return [[(line[oy + y], line[ox + x]) for x in range(side)] for y in range(side)]


def possible_offsets(sources: Tensor, grid: int) -> set[tuple[int, int]]:
    """The crop offsets under which a source map is constant on every grid cell."""
    side = len(sources)
    values = sources.tolist()
    found = set()
    for oy in range(side // grid):
        for ox in range(side // grid):
            cells = cells_of(side, grid, oy, ox)
            seen: dict[tuple[int, int], int] = {}
            if all(
                seen.setdefault(cells[y][x], values[y][x]) == values[y][x] for y in range(side) for x in range(side)
            ):
                found.add((oy, ox))
    return found


@pytest.mark.parametrize("side", [16, 24])
def test_the_chimera_grid_shares_one_offset_in_a_batch(side: int) -> None:
    seen = set()
    for step in range(6):
        sources = draw_sources(None, mix_of("chimera-grid"), range(40), 0, step, side)
        shared = set.intersection(*(possible_offsets(source, 4) for source in sources))
        assert len(shared) == 1
        seen |= shared
    assert len(seen) > 1


def test_the_grid_has_an_offset_for_each_sample() -> None:
    sources = draw_sources(None, mix_of("grid", 16), range(300), 0, 0, 16)
    offsets = [possible_offsets(source, 4) for source in sources]
    assert all(len(found) == 1 for found in offsets)  # 16 sources leave hardly a border unseen
    counts = Counter(offset for found in offsets for offset in found)
    assert len(counts) == 16
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize("kind", GRIDS)
def test_grid_cells_are_independent_uniform_draws(kind: MaskKind) -> None:
    sources = draw_sources(None, mix_of(kind), range(4000), 0, 0, 16)
    # Pixels 0, 5, 10, 15 lie in four different cells under every offset: cells are 5 pixels wide.
    corners = sources[:, [[0], [5]], [0, 10]].flatten(1)
    outcomes = (corners * torch.tensor([8, 4, 2, 1])).sum(1)
    assert stats.chisquare(outcomes.bincount(minlength=16).numpy()).pvalue > 1e-4


def test_a_grid_finer_than_the_features_still_works() -> None:
    mask = draw_masks(None, mix_of("grid", 3, grid=12), range(3), 0, 0, 8)
    assert torch.equal(mask.sum(1), torch.ones(3, 8, 8))


# The segment kinds.


def literal_chimera_selection(labels: int) -> dict[tuple[int, ...], Fraction]:
    """Selected label sets and their probabilities, enumerated over both draws of the released rule."""
    chances: dict[tuple[int, ...], Fraction] = {}
    lows = range(max(1, labels - 1))
    for low in lows:
        highs = range(low + 1, max(low + 2, labels))
        for high in highs:
            selected = tuple(range(low, high))
            chances[selected] = chances.get(selected, Fraction(0)) + Fraction(1, len(lows) * len(highs))
    return chances


@pytest.mark.parametrize("labels", [1, 2, 3, 4, 7])
def test_chimera_segments_follow_the_released_rule(labels: int) -> None:
    draws = 20_000
    table = draw_sources(row_of_labels(draws, labels), mix_of("chimera-segments"), range(draws), 0, 0, 4)[:, 0]
    seen = Counter(tuple(i for i, source in enumerate(row) if source == 0) for row in table.tolist())
    chances = literal_chimera_selection(labels)
    assert sum(chances.values()) == 1
    assert set(seen) == set(chances)
    if len(chances) > 1:
        expected = [float(chance) * draws for chance in chances.values()]
        assert stats.chisquare([seen[outcome] for outcome in chances], expected).pvalue > 1e-4


def test_chimera_takes_the_selected_segments_from_image_a() -> None:
    # n = 2: label 0 is always selected, the last label never.
    segments = torch.zeros(1, 8, 8, dtype=torch.int32)
    segments[:, :, 4:] = 1
    m_a, m_b = draw_masks(segments, mix_of("chimera-segments"), [3], 0, 0, 8)[0]
    assert torch.equal(m_a, (segments[0] == 0).float())
    assert torch.equal(m_b, 1 - m_a)


@pytest.mark.parametrize(("labels", "count"), [(2, 2), (3, 2), (5, 3), (4, 4)])
def test_independent_segments_are_uniform_with_one_redraw(labels: int, count: int) -> None:
    draws = 30_000
    table = draw_sources(row_of_labels(draws, labels), mix_of("segments-independent", count), range(draws), 0, 0, 4)[
        :, 0
    ]
    for label in range(labels):
        assert stats.chisquare(table[:, label].bincount(minlength=count).numpy()).pvalue > 1e-4

    # All from one source: only where both draws say so.
    once = count ** (1 - labels)
    single = int((table == table[:, :1]).all(1).sum())
    assert stats.binomtest(single, draws, once**2).pvalue > 1e-4

    distinct = torch.stack([(table == k).any(1) for k in range(count)], 1).sum(1).double()
    plain = count * (1 - (1 - 1 / count) ** labels)
    expected = plain - once + once * plain  # the outcomes with one source are drawn again
    assert abs(distinct.mean() - expected) < 4 * distinct.std() / math.sqrt(draws)


def test_a_single_segment_comes_from_one_image_and_is_not_drawn_again() -> None:
    table = draw_sources(row_of_labels(6000, 1), mix_of("segments-independent", 3), range(6000), 0, 0, 4)[:, 0, 0]
    assert stats.chisquare(table.bincount(minlength=3).numpy()).pvalue > 1e-4
    # The same first draw stands where a second segment differs, so the rule saw nothing to draw again.
    pairs = draw_sources(row_of_labels(6000, 2), mix_of("segments-independent", 3), range(6000), 0, 0, 4)[:, 0]
    differ = pairs[:, 0] != pairs[:, 1]
    assert (table == pairs[:, 0])[differ].float().mean() > 0.7


def literal_blocks(labels: int, count: int) -> set[tuple[int, ...]]:
    """Every outcome of the contiguous rule, all equally likely."""
    number = min(labels, count)
    outcomes = set()
    for cuts in combinations(range(1, labels), number - 1):
        edges = [0, *cuts, labels]
        for order in permutations(range(count), number):
            outcomes.add(tuple(k for k, a, b in zip(order, edges, edges[1:], strict=False) for _ in range(b - a)))
    return outcomes


@pytest.mark.parametrize(("labels", "count"), [(5, 3), (4, 2), (3, 3), (2, 3), (1, 3), (3, 1)])
def test_contiguous_blocks_and_their_images_are_uniform(labels: int, count: int) -> None:
    draws = 15_000
    table = draw_sources(row_of_labels(draws, labels), mix_of("segments-contiguous", count), range(draws), 0, 0, 4)[
        :, 0
    ]
    seen = Counter(map(tuple, table.tolist()))
    outcomes = literal_blocks(labels, count)
    assert set(seen) == outcomes
    if len(outcomes) > 1:
        assert stats.chisquare(list(seen.values())).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_masks_leave_the_global_generator_alone(kind: MaskKind) -> None:
    before = torch.get_rng_state()
    draw_masks(blocks(2, 32, 5), mix_of(kind), range(2), 0, 0, 8)
    assert torch.equal(torch.get_rng_state(), before)
