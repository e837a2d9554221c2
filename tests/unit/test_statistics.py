import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_factory import ARMS, run, settings

from hydramix_dist.evaluation.assemble import arm_infos
from hydramix_dist.evaluation.results import ArmInfo, PairResult, RunResult
from hydramix_dist.evaluation.statistics import compare, comparisons, holm, summarize

ARM_INFOS = arm_infos(settings())
TWO = arm_infos(settings(("baseline", "hydramix")))


def runs(arm: str, values: list[float], shots: int = 5, first_seed: int = 0) -> list[RunResult]:
    return [run(arm, first_seed + i, value, shots) for i, value in enumerate(values)]


def pair_of(baseline: list[float], hydramix: list[float]) -> PairResult:
    (pair,) = compare(TWO, runs("baseline", baseline) + runs("hydramix", hydramix))
    return pair


def test_paired_t_against_numbers_worked_out_by_hand():
    # Differences .01 .02 .03 .04 .05: mean .03, sd .0158114, standard error .0070711, t = 4.2426 with 4 degrees of
    # freedom; the table gives 2.776 for 95 % and p = 0.0132 for that t.
    pair = pair_of([0.5, 0.6, 0.5, 0.6, 0.5], [0.51, 0.62, 0.53, 0.64, 0.55])
    assert pair.mean_difference == pytest.approx(0.03)
    assert pair.spread == pytest.approx(0.0158114, abs=1e-6)
    assert pair.interval_low == pytest.approx(0.03 - 2.776445 * 0.0070711, abs=1e-5)
    assert pair.interval_high == pytest.approx(0.03 + 2.776445 * 0.0070711, abs=1e-5)
    assert pair.p_value == pytest.approx(0.0132, abs=1e-4)
    assert pair.note is None


def test_pairing_ignores_how_hard_a_seed_is():
    easy = pair_of([0.3, 0.5, 0.8], [0.32, 0.53, 0.81])
    flat = pair_of([0.5, 0.5, 0.5], [0.52, 0.53, 0.51])
    assert easy.interval_low == pytest.approx(flat.interval_low)
    assert easy.p_value == pytest.approx(flat.p_value)


@pytest.mark.parametrize("count", [1, 2])
def test_under_three_seeds_nothing_is_claimed(count):
    pair = pair_of([0.5, 0.6][:count], [0.7, 0.72][:count])
    assert (pair.interval_low, pair.interval_high, pair.p_value, pair.p_holm) == (None,) * 4
    assert pair.note is not None and str(count) in pair.note and "3" in pair.note
    assert (pair.spread is None) == (count == 1)


@pytest.mark.parametrize(("count", "few"), [(3, True), (4, True), (5, False)])
def test_few_seeds_are_marked(count, few):
    pair = pair_of([0.5, 0.6, 0.55, 0.52, 0.58][:count], [0.6, 0.63, 0.6, 0.64, 0.66][:count])
    assert (pair.note == "few seeds") is few
    assert pair.p_value is not None


def test_equal_differences_give_no_certainty():
    # 0.7-0.6 and 0.4-0.3 differ in the last bit: equal for us, although their computed spread is not zero.
    assert 0.7 - 0.6 != 0.4 - 0.3
    pair = pair_of([0.6, 0.3, 0.4], [0.7, 0.4, 0.5])
    assert (pair.interval_low, pair.p_value, pair.p_holm) == (None, None, None)
    assert pair.mean_difference == pytest.approx(0.1)
    assert pair.note is not None and "equal" in pair.note


def test_only_common_seeds_form_pairs():
    unequal = runs("baseline", [0.1, 0.5, 0.6, 0.7]) + runs("hydramix", [0.6, 0.75, 0.8, 0.9], first_seed=1)
    (pair,) = compare(TWO, unequal)
    assert pair.seeds == (1, 2, 3)
    assert pair.mean_difference == pytest.approx((0.1 + 0.15 + 0.1) / 3)
    assert pair.arm_mean - pair.reference_mean == pytest.approx(pair.mean_difference)
    assert compare(TWO, runs("baseline", [0.5]) + runs("hydramix", [0.5], first_seed=7)) == ()


def test_family_is_mixing_against_plain_and_all_against_baseline_once_each():
    family = list(comparisons(ARM_INFOS))
    mixing = {"chimeramix", "hydramix", "hydramix-trivialaugment"}
    expected = {(m, p) for m in mixing for p in ("baseline", "trivialaugment")} | {("trivialaugment", "baseline")}
    assert set(family) == expected
    assert len(family) == len(expected)


def test_no_pair_comes_up_in_both_directions():
    arms = (
        ArmInfo(name="baseline", augmentation="basic", generator="g", count=3),
        ArmInfo(name="plain", augmentation="basic"),
    )
    assert list(comparisons(arms)) == [("baseline", "plain")]


def test_correction_counts_each_n_on_its_own_and_only_what_was_tested():
    values = {name: [0.5 + 0.01 * i, 0.52 + 0.013 * i, 0.61 - 0.004 * i] for i, name in enumerate(ARMS)}
    five = [r for name, v in values.items() for r in runs(name, v)]
    alone = {(p.arm, p.reference): p.p_holm for p in compare(ARM_INFOS, five)}
    ten = [r for name, v in values.items() for r in runs(name, v[:2], shots=10)]
    both = compare(ARM_INFOS, five + ten)
    assert {(p.arm, p.reference): p.p_holm for p in both if p.shots == 5} == alone
    assert all(p.p_holm is None for p in both if p.shots == 10)
    assert min(p.p_holm for p in both if p.p_holm) > min(p.p_value for p in both if p.p_value)


def test_holm_on_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_raises_p_keeps_order_and_lies_between_p_and_bonferroni(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=8))
def test_summary_agrees_with_numpy_and_its_interval_holds_the_mean(values):
    (summary,) = summarize(TWO, runs("baseline", values))
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(float(np.mean(values)))
    assert summary.sd == pytest.approx(float(np.std(values, ddof=1)))
    if summary.interval_low is not None and summary.interval_high is not None:
        assert summary.interval_low <= summary.mean <= summary.interval_high
        assert math.isfinite(summary.interval_high)


def test_summaries_leave_out_arms_without_runs():
    assert [(s.arm, s.shots) for s in summarize(ARM_INFOS, runs("hydramix", [0.5], 10) + runs("baseline", [0.4]))] == [
        ("baseline", 5),
        ("hydramix", 10),
    ]


def test_every_pair_of_arms_is_compared_and_those_outside_the_family_leave_its_correction_alone():
    values = {name: [0.5 + 0.01 * i, 0.52 + 0.013 * i, 0.61 - 0.004 * i] for i, name in enumerate(ARMS)}
    pairs = compare(ARM_INFOS, [r for name, v in values.items() for r in runs(name, v)])
    assert len({frozenset((p.arm, p.reference)) for p in pairs}) == len(pairs) == math.comb(len(ARMS), 2)
    family = [p for p in pairs if (p.arm, p.reference) in set(comparisons(ARM_INFOS))]
    outside = [p for p in pairs if p not in family]
    assert ("hydramix", "chimeramix") in {(p.arm, p.reference) for p in outside}
    assert all(p.p_holm is None and p.p_value is not None and not p.in_family for p in outside)
    assert all(p.in_family for p in family)
    assert [p.p_holm for p in family] == pytest.approx(holm([p.p_value for p in family if p.p_value is not None]))
