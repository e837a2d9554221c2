"""Draws are pure functions of (seed, purpose, number): the promise that everything reproducible stands on."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hydramix_dist.data.draws import Order, derived_seed, integers, philox4x32, uniform

seeds = st.integers(-(2**40), 2**40)
numbers = st.integers(0, 2**63 - 1)
purposes = st.text(max_size=20)


# The published known-answer vectors of Random123 for Philox4x32-10: counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_philox_gives_the_published_numbers(counter: str, key: str, result: str) -> None:
    words = tuple(np.array([int(word, 16)], np.uint64) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    found = philox4x32(words, (k0, k1))
    assert [int(word[0]) for word in found] == [int(word, 16) for word in result.split()]


@given(seeds, purposes, st.lists(numbers, min_size=1, max_size=9), st.integers(0, 11))
def test_a_row_depends_on_its_own_number_only(seed: int, purpose: str, batch: list[int], count: int) -> None:
    together = uniform(seed, purpose, batch, count)
    assert together.shape == (len(batch), count) and together.dtype == torch.float64
    for row, number in zip(together, batch, strict=True):
        assert torch.equal(uniform(seed, purpose, [number], count)[0], row)


@given(seeds, purposes, numbers, st.integers(0, 20), st.integers(0, 20))
def test_asking_for_more_values_keeps_the_first_ones(seed: int, purpose: str, number: int, few: int, more: int) -> None:
    short, long = uniform(seed, purpose, [number], few), uniform(seed, purpose, [number], few + more)
    assert torch.equal(long[:, :few], short)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_empty_batch_gives_no_rows(count: int) -> None:
    assert uniform(0, "crop", [], count).shape == (0, count)
    assert uniform(0, "crop", np.empty(0, np.int64), count).shape == (0, count)


def test_seed_purpose_and_number_each_change_every_value() -> None:
    base = uniform(0, "crop", [7], 64)
    for other in (uniform(1, "crop", [7], 64), uniform(0, "crop2", [7], 64), uniform(0, "crop", [8], 64)):
        assert not torch.isin(other, base).any()
    # High words of a long number count too: sample numbers beyond 2^32 are no repetition.
    assert not torch.isin(uniform(0, "crop", [7 + 2**32], 64), base).any()


def test_values_are_uniform_and_neighbours_unrelated() -> None:
    u = uniform(3, "flip", np.arange(20_000), 4).numpy()
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlations = np.corrcoef(np.concatenate([u[:-1].T, u[1:].T]))
    assert np.abs(correlations - np.eye(8)).max() < 5 / np.sqrt(len(u))


@given(st.integers(1, 200))
def test_integers_cover_their_range_evenly(n: int) -> None:
    drawn = integers(uniform(n, "partner", np.arange(20_000), 1)[:, 0], n).numpy()
    observed = np.bincount(drawn, minlength=n)
    assert len(observed) == n
    assert n == 1 or stats.chisquare(observed).pvalue > 1e-6


def test_integers_take_a_bound_for_each_row() -> None:
    bounds = torch.tensor([[1], [2], [1000]])
    drawn = integers(uniform(0, "partner", [0, 1, 2], 500), bounds)
    assert drawn.dtype == torch.int64
    assert [int(row.max()) for row in drawn[:2]] == [0, 1] and 900 < int(drawn[2].max()) < 1000


def test_derived_seeds_fit_a_generator_and_differ() -> None:
    found = {derived_seed(seed, purpose, step) for seed in (0, 1) for purpose in ("d0", "d1") for step in range(500)}
    assert len(found) == 2000
    assert all(0 <= seed < 2**63 for seed in found)
    torch.Generator().manual_seed(max(found))


@given(seeds, st.integers(1, 60), st.integers(0, 400), st.integers(1, 5))
def test_order_shows_each_item_once_a_pass(seed: int, length: int, first_pass: int, passes: int) -> None:
    shown = Order(seed, "order", length).items(np.arange(first_pass * length, (first_pass + passes) * length))
    for one_pass in shown.reshape(passes, length):
        assert sorted(one_pass.tolist()) == list(range(length))


@given(st.integers(1, 60), st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_order_needs_no_history(length: int, asked: list[int]) -> None:
    together = Order(5, "order", length).items(np.array(asked))
    alone = [int(Order(5, "order", length).items(np.array([number]))[0]) for number in asked]
    assert together.tolist() == alone


def test_passes_are_shuffled_differently_and_evenly() -> None:
    shown = Order(0, "order", 5).items(np.arange(5 * 6000)).reshape(6000, 5)
    counts = Counter(tuple(row) for row in shown.tolist())
    assert len(counts) == 120  # every permutation of five turns up
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
