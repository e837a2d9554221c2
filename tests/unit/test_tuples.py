"""Tuples: K images of one class by the declared rules, uniform, each a function of its sample number alone."""

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hydramix_dist.config.schema import MaskSettings, MixSettings
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.tuples import draw_layout, draw_partners, draw_tuples


def shots_of(labels: list[int]) -> ShotSet:
    """A shot set of these labels; its pixels do not matter here."""
    return ShotSet(
        images_NCHW=torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8),
        labels_N=torch.tensor(labels),
        ids=tuple(f"image{row}" for row in range(len(labels))),
        segments_NHW=None,
        classes=tuple(f"class{label}" for label in range(max(labels) + 1)),
    )


labels_of_a_set = st.lists(st.integers(0, 3), min_size=1, max_size=24)


@given(labels=labels_of_a_set, count=st.integers(1, 6), batch=st.sampled_from([1, 3, 7]), seed=st.integers(0, 9))
def test_tuples_are_pure_distinct_and_start_with_the_anchor(
    labels: list[int], count: int, batch: int, seed: int
) -> None:
    shots = shots_of(labels)
    anchors = torch.arange(batch) * 5 % len(labels)
    idx = draw_tuples(anchors, shots, MixSettings(count=count), range(batch), seed)
    assert idx.shape == (batch, count)
    assert idx.dtype == torch.int64
    assert torch.equal(idx[:, 0], anchors)
    for row in idx.tolist():
        members = [i for i, label in enumerate(labels) if label == labels[row[0]]]
        assert set(row) <= set(members)
        distinct = min(count, len(members))
        assert len(set(row[:distinct])) == distinct


def test_every_ordered_choice_of_partners_is_equally_likely() -> None:
    shots = shots_of([0, 1, 0, 0, 1, 0, 0, 1])  # class 0: rows 0 2 3 5 6
    idx = draw_tuples(torch.full((24_000,), 3), shots, MixSettings(count=4), range(24_000), 1)
    seen = Counter(map(tuple, idx[:, 1:].tolist()))
    outcomes = list(permutations([0, 2, 5, 6], 3))
    assert set(seen) == set(outcomes)
    assert stats.chisquare([seen[outcome] for outcome in outcomes]).pvalue > 1e-4


@pytest.mark.parametrize("anchor", [1, 4])
def test_a_class_smaller_than_k_gives_all_it_has_then_repeats_uniformly(anchor: int) -> None:
    shots = shots_of([0, 1, 0, 0, 1, 0, 0, 1])  # class 1: rows 1 4 7
    idx = draw_tuples(torch.full((9000,), anchor), shots, MixSettings(count=5), range(9000), 2)
    first = [sorted(row) for row in idx[:, :3].tolist()]
    assert all(row == [1, 4, 7] for row in first)
    repeats = Counter(map(tuple, idx[:, 3:].tolist()))
    assert len(repeats) == 9
    assert stats.chisquare(list(repeats.values())).pvalue > 1e-4


def test_a_class_of_one_image_gives_k_times_that_image() -> None:
    idx = draw_tuples(torch.tensor([2, 0]), shots_of([0, 0, 1]), MixSettings(count=3), [8, 9], 0)
    assert idx[0].tolist() == [2, 2, 2]
    assert sorted(idx[1, :2].tolist()) == [0, 1]


def test_self_pairs_draw_the_partner_uniformly_with_the_anchor_allowed() -> None:
    shots = shots_of([0, 1, 0, 0, 1, 0, 0, 1])
    mix = MixSettings(count=2, self_pairs=True, mask=MaskSettings(kind="chimera-grid"))
    idx = draw_tuples(torch.full((10_000,), 3), shots, mix, range(10_000), 4)
    assert (idx[:, 0] == 3).all()
    partners = Counter(idx[:, 1].tolist())
    assert set(partners) == {0, 2, 3, 5, 6}
    assert stats.chisquare(list(partners.values())).pvalue > 1e-4


@given(number=st.integers(0, 2**40), others=st.lists(st.integers(0, 2**40), max_size=5), self_pairs=st.booleans())
def test_a_tuple_does_not_depend_on_the_rest_of_its_batch(number: int, others: list[int], self_pairs: bool) -> None:
    shots = shots_of([0, 1, 0, 0, 1, 0, 0, 1, 2])
    mix = MixSettings(count=3, self_pairs=self_pairs)
    anchors = torch.tensor([*([8, 1, 4, 7, 0][: len(others)]), 5])
    among = draw_tuples(anchors, shots, mix, [*others, number], 6)
    assert torch.equal(draw_tuples(torch.tensor([5]), shots, mix, [number], 6)[0], among[-1])


def test_the_layout_image_is_any_of_the_k_with_equal_chance() -> None:
    layout = draw_layout(MixSettings(count=3), range(9000), 0)
    assert stats.chisquare(layout.bincount(minlength=3).numpy()).pvalue > 1e-4
    assert torch.equal(draw_layout(MixSettings(count=3), [41], 0), layout[41:42])


def test_chimera_takes_the_partners_segments() -> None:
    mix = MixSettings(count=2, mask=MaskSettings(kind="chimera-segments"))
    assert draw_layout(mix, range(50), 0).tolist() == [1] * 50


def test_tuples_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_tuples(torch.tensor([0, 1]), shots_of([0, 1, 0, 0]), MixSettings(), range(2), 0)
    draw_layout(MixSettings(), range(2), 0)
    assert torch.equal(torch.get_rng_state(), before)


# Groups: mixes that share the images of one draw.


@given(
    labels=labels_of_a_set,
    size=st.integers(1, 6),
    groups=st.integers(1, 3),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_a_mix_of_a_group_starts_with_its_own_image_and_takes_different_ones(
    labels: list[int], size: int, groups: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    shots = shots_of(labels)
    rows = draw_tuples(torch.arange(groups) * 5 % len(labels), shots, MixSettings(count=size), range(groups), seed)
    slots = draw_partners(rows, count, range(groups * size), seed)
    assert slots.shape == (groups * size, count)
    for number, chosen in enumerate(slots.tolist()):
        group = number // size
        assert chosen[0] == number and {slot // size for slot in chosen} == {group}
        assert len(set(chosen)) == count, "no view twice"
        images = rows.flatten()[chosen].tolist()
        assert len(set(images)) == min(count, len(set(rows[group].tolist()))), "no image twice while others are left"


def test_sources_of_a_group_are_as_likely_as_those_of_a_tuple() -> None:
    shots = shots_of([0] * 5)
    leads = torch.arange(12_000) % 5
    rows = draw_tuples(leads, shots, MixSettings(count=4), range(12_000), 3)
    slots = draw_partners(rows, 3, range(48_000), 3)
    third_of_each_group = rows.flatten()[slots[2::4]]  # one mix a group: mixes of one group are not independent
    seen = Counter(map(tuple, third_of_each_group.tolist()))
    outcomes = list(permutations(range(5), 3))
    assert set(seen) == set(outcomes)
    assert stats.chisquare([seen[outcome] for outcome in outcomes]).pvalue > 1e-4


def test_partners_do_not_depend_on_the_rest_of_the_batch() -> None:
    rows = draw_tuples(torch.tensor([0, 1, 2]), shots_of([0, 1, 0, 0, 1, 0, 0, 1]), MixSettings(count=4), range(3), 0)
    together = draw_partners(rows, 3, range(12), 0)
    assert torch.equal(draw_partners(rows[2:], 3, range(8, 12), 0) + 8, together[8:])
