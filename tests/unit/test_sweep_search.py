"""What a search tries next: a pure function of its seed and of what was tried, fair to every arm, inside its space."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hydramix_dist.config.load import build
from hydramix_dist.config.sweep import SearchSettings
from hydramix_dist.orchestration.sweep.search import Tried, suggest

LR, BATCH, DROPOUT = "classifier.optimizer.lr", "classifier.batch", "classifier.dropout"
SPACE: dict[str, Any] = {
    LR: {"log": [1e-4, 1.0]},
    DROPOUT: {"uniform": [-0.5, 0.75]},
    BATCH: {"choice": [4, 8, None, "x", True]},
}
KEYS = tuple(SPACE)


def search_of(method: str = "random", seed: int = 0, space: dict[str, Any] = SPACE) -> SearchSettings:
    return build(SearchSettings, {"method": method, "seed": seed, "space": space}, "test")


def ask(
    search: SearchSettings, count: int, keys: Sequence[str] = KEYS, group: str = "faces/a-n5"
) -> list[dict[str, Any]]:
    """Return the first so many suggestions, none of which is ever scored."""
    asked: list[dict[str, Any]] = []
    for _ in range(count):
        asked.append(suggest(search, keys, group, [(values, None) for values in asked]))
    return asked


def ask_scored(
    search: SearchSettings, count: int, score: Callable[[dict[str, Any]], float], group: str = "faces/a-n5"
) -> list[Tried]:
    """Return so many suggestions, each scored before the next is asked for."""
    tried: list[Tried] = []
    for _ in range(count):
        values = suggest(search, tuple(search.space), group, tried)
        tried.append((values, score(values)))
    return tried


def peak(values: dict[str, Any]) -> float:
    """Return a score that is best at a rate of 1e-3, a quarter of the way through the logarithm."""
    return math.exp(-(math.log10(values[LR] / 1e-3) ** 2))


# ---- random


@pytest.mark.parametrize("method", ["random", "asha"])
def test_draws_are_a_pure_function_of_seed_key_and_number(method: str) -> None:
    search = search_of(method)
    asked = ask(search, 12)
    assert asked == ask(search, 12) and len({values[LR] for values in asked}) == 12
    scored = [(values, 0.1 * number) for number, values in enumerate(asked)]
    for number in range(12):  # what came of the earlier ones has no say, nor whether there were others in between
        assert suggest(search, KEYS, "faces/a-n5", scored[:number]) == asked[number]
        assert suggest(search, (LR,), "faces/a-n5", [({}, None)] * number) == {LR: asked[number][LR]}
    assert all(list(values) == list(KEYS) for values in asked)


def test_every_arm_is_tried_with_the_same_values() -> None:
    one, other = (ask(search_of(), 8, group=group) for group in ("faces/a-n5", "leaves/b-n10"))
    assert one == other
    fewer = ask(search_of(), 8, keys=(DROPOUT, LR))  # an arm without one of the settings
    assert fewer == [{DROPOUT: values[DROPOUT], LR: values[LR]} for values in one]


def test_seeds_and_keys_draw_apart() -> None:
    one, other = ([values[LR] for values in ask(search_of(seed=seed), 50)] for seed in (0, 1))
    assert not set(one) & set(other)
    both = search_of(space={LR: {"uniform": [0, 1]}, DROPOUT: {"uniform": [0, 1]}})
    drawn = np.array([[values[LR], values[DROPOUT]] for values in ask(both, 300, (LR, DROPOUT))])
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.15  # 2.6 standard deviations; the seed is fixed


def test_log_is_even_over_the_logarithm_and_uniform_over_the_values() -> None:
    asked = ask(search_of(), 500)
    logs = [(math.log(values[LR]) - math.log(1e-4)) / math.log(1e4) for values in asked]
    shares = [(values[DROPOUT] + 0.5) / 1.25 for values in asked]
    for even in (logs, shares):
        assert stats.kstest(even, "uniform").pvalue > 0.05
    assert stats.kstest([values[LR] for values in asked], "uniform").pvalue < 1e-12


def test_every_choice_comes_as_often() -> None:
    asked = [values[BATCH] for values in ask(search_of(), 500)]
    counts = [sum(value is choice for value in asked) for choice in (4, 8, None, "x", True)]
    assert sum(counts) == 500 and stats.chisquare(counts).pvalue > 0.05


@given(seed=st.integers(0, 10**9), low=st.floats(1e-8, 1e3), factor=st.floats(1.001, 1e6), number=st.integers(0, 1000))
def test_values_lie_inside_their_bounds(seed: int, low: float, factor: float, number: int) -> None:
    space = {LR: {"log": [low, low * factor]}, DROPOUT: {"uniform": [-low, low]}}
    values = suggest(search_of(seed=seed, space=space), (LR, DROPOUT), "g", [({}, None)] * number)
    # The logarithm and back again: the last bits of a bound may differ.
    assert low * (1 - 1e-12) <= float(values[LR] or 0) <= low * factor * (1 + 1e-12)
    assert -low <= float(values[DROPOUT] or 0) <= low


# ---- Optuna


def test_optuna_says_the_same_to_the_same_history() -> None:
    search = search_of("optuna", space={LR: {"log": [1e-4, 1.0]}})
    tried = ask_scored(search, 14, peak)
    assert tried == ask_scored(search, 14, peak)
    for number in (0, 5, 11, 13):  # a sweep that goes on from there is told what it would have been told
        assert suggest(search, (LR,), "faces/a-n5", list(tried[:number])) == tried[number][0]
    other = search_of("optuna", seed=1, space={LR: {"log": [1e-4, 1.0]}})
    assert suggest(other, (LR,), "faces/a-n5", []) != tried[0][0]
    assert suggest(search, (LR,), "faces/b-n5", []) != tried[0][0]


def test_optuna_learns_from_scores() -> None:
    space = {LR: {"log": [1e-4, 1.0]}}

    def distance(tried: Sequence[Tried]) -> float:
        return float(np.mean([abs(math.log10(float(values[LR] or 0) / 1e-3)) for values, _ in tried[15:]]))

    near = [distance(ask_scored(search_of("optuna", seed, space=space), 30, peak)) for seed in range(3)]
    far = [distance(ask_scored(search_of("random", seed, space=space), 30, peak)) for seed in range(3)]
    assert max(near) < min(far) and np.mean(near) < 0.5 * np.mean(far)
    upside_down = distance(ask_scored(search_of("optuna", 0, space=space), 30, lambda values: -peak(values)))
    assert upside_down > 2 * max(near)  # larger is better


def test_optuna_spreads_those_that_run_beside_each_other() -> None:
    search = search_of("optuna", space={LR: {"log": [1e-4, 1.0]}})
    tried = ask_scored(search, 15, peak)
    beside: list[Tried] = []
    for _ in range(4):
        beside.append((suggest(search, (LR,), "faces/a-n5", [*tried, *beside]), None))
    assert len({values[LR] for values, _ in beside}) == 4
    again = [suggest(search, (LR,), "faces/a-n5", [*tried, *beside[:number]]) for number in range(4)]
    assert again == [values for values, _ in beside]


def test_optuna_takes_every_kind_of_space() -> None:
    search = search_of("optuna")
    tried = ask_scored(search, 15, lambda values: float(values[BATCH] is None) + values[DROPOUT])
    for values, _ in tried:
        assert list(values) == list(KEYS) and any(values[BATCH] is choice for choice in (4, 8, None, "x", True))
        assert 1e-4 <= float(values[LR] or 0) <= 1.0 and -0.5 <= float(values[DROPOUT] or 0) <= 0.75
    assert ask(search_of("optuna"), 3, keys=(BATCH,))[0].keys() == {BATCH}
