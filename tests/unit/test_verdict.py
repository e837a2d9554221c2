import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_factory import pilot

from hydramix_dist.evaluation import wording

BASE = (0.50, 0.53, 0.48, 0.55, 0.51)


def above(values, *gains):
    return tuple(round(v + g, 4) for v, g in zip(values, gains, strict=True))


STEADY_GAIN = above(BASE, 0.06, 0.055, 0.065, 0.058, 0.062)
STEADY_LOSS = above(BASE, -0.03, -0.035, -0.028, -0.032, -0.03)
SMALL = above(BASE, 0.001, -0.002, 0.002, 0.0, -0.001)
NOISY = above(BASE, 0.08, -0.05, 0.06, -0.04, 0.05)


@pytest.mark.parametrize(
    ("mixing", "outcome"),
    [(STEADY_GAIN, "helped"), (STEADY_LOSS, "did not help"), (SMALL, "did not help"), (NOISY, "cannot tell")],
)
def test_outcome_follows_the_rule(mixing, outcome):
    verdict = pilot({"baseline": BASE, "hydramix": mixing}).verdict
    assert verdict.outcome == outcome
    assert len(verdict.sentences) == 2
    assert all(sentence.endswith(".") for sentence in verdict.sentences)


def test_harm_is_said():
    assert "worse" in pilot({"baseline": BASE, "hydramix": STEADY_LOSS}).verdict.sentences[0]
    assert "worse" not in pilot({"baseline": BASE, "hydramix": SMALL}).verdict.sentences[0]


def test_reference_is_the_best_arm_without_mixing_not_the_baseline():
    strong = above(BASE, 0.062, 0.058, 0.06, 0.066, 0.059)
    verdict = pilot({"baseline": BASE, "trivialaugment": strong, "hydramix": STEADY_GAIN}).verdict
    (answer,) = verdict.answers
    assert answer.reference == "trivialaugment"
    assert verdict.outcome == "did not help"
    assert "trivialaugment" in verdict.sentences[0]


def test_one_undecided_mixing_arm_keeps_the_question_open():
    verdict = pilot({"baseline": BASE, "chimeramix": STEADY_LOSS, "hydramix": NOISY}).verdict
    assert (verdict.outcome, verdict.answers[0].arm) == ("cannot tell", "hydramix")


def test_one_clear_gain_is_enough_and_is_the_one_reported():
    verdict = pilot({"baseline": BASE, "chimeramix": STEADY_LOSS, "hydramix": STEADY_GAIN}).verdict
    assert (verdict.outcome, verdict.answers[0].arm) == ("helped", "hydramix")


@pytest.mark.parametrize("count", [1, 2])
def test_under_three_seeds_even_a_large_difference_decides_nothing(count):
    verdict = pilot({"baseline": BASE[:count], "hydramix": above(BASE, *[0.3] * 5)[:count]}).verdict
    assert verdict.outcome == "cannot tell"
    assert "at least 3 seeds" in verdict.sentences[1]


def test_a_preset_too_short_to_judge_gives_no_answer():
    verdict = pilot({"baseline": BASE, "hydramix": STEADY_GAIN}, verdict=False).verdict
    assert verdict.outcome == "too short to judge"
    assert "helped" not in " ".join(verdict.sentences)


@pytest.mark.parametrize("accuracies", [{"baseline": BASE}, {"hydramix": BASE}, {"baseline": (), "hydramix": BASE}])
def test_without_two_sides_there_is_nothing_to_compare(accuracies):
    assert pilot(accuracies).verdict.outcome == "nothing to compare"


def test_sentences_carry_arm_difference_interval_and_cost():
    results = pilot({"baseline": BASE, "hydramix": STEADY_GAIN})
    first, second = results.verdict.sentences
    assert "hydramix names 57.4 %" in first and "51.4 %" in first  # means of the five values, to a tenth
    assert "+6.0 points" in second
    # Classifier 55 s, its generator 131 s, against 46 s for the baseline, on average over the seeds.
    assert results.verdict.answers[0].cost_ratio == pytest.approx((55 + 131) / 46)
    assert "4.0 times" in second


def test_cost_counts_the_generator_that_trained_only_once_for_two_arms():
    answer = pilot({"baseline": BASE, "hydramix": SMALL, "hydramix-trivialaugment": STEADY_GAIN}).verdict.answers[0]
    assert answer.cost_ratio == pytest.approx((55 + 131) / 46)


def test_several_n_get_an_answer_each_and_the_bad_news_stands_first():
    helped = pilot({"baseline": BASE, "hydramix": STEADY_GAIN})
    hurt = pilot({"baseline": BASE, "hydramix": STEADY_LOSS})
    runs = helped.runs + tuple(run.model_copy(update={"shots": 10}) for run in hurt.runs)
    verdict = _judged(runs, shots=(5, 10))
    assert [answer.outcome for answer in verdict.answers] == ["helped", "did not help"]
    assert verdict.outcome == "mixed"
    assert verdict.sentences[0].startswith("Mixing did not help with 10")
    assert "helped with 5" in verdict.sentences[0]
    assert "+6.0 points" in verdict.sentences[1] and "−3.1 points" in verdict.sentences[1]


def _judged(runs, shots):
    from hydramix_dist.evaluation.statistics import compare, summarize
    from hydramix_dist.evaluation.verdict import judge

    arms = pilot({"baseline": BASE, "hydramix": BASE}).arms
    return judge(arms, shots, summarize(arms, runs), compare(arms, runs))


def test_an_unfinished_pilot_says_so_first():
    verdict = pilot({"baseline": BASE, "hydramix": STEADY_GAIN[:4]}).verdict
    assert verdict.sentences[0].startswith("Not finished (1 run missing)")


def test_more_comparisons_make_the_rule_stricter():
    # p is about 0.03 on its own: enough for one comparison, not for the several that more arms bring.
    close = above(BASE, 0.05, 0.01, 0.06, 0.02, 0.03)
    alone = pilot({"baseline": BASE, "hydramix": close})
    among = pilot({"baseline": BASE, "hydramix": close, "chimeramix": NOISY, "trivialaugment": SMALL})
    assert 0.01 < alone.pairs[0].p_value < 0.05
    assert (alone.verdict.outcome, among.verdict.outcome) == ("helped", "cannot tell")


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=3, max_size=3))
def test_the_rule_holds_for_any_accuracies(values):
    results = pilot(dict(zip(("baseline", "chimeramix", "hydramix"), map(tuple, values), strict=True)))
    against = [pair for pair in results.pairs if pair.reference == "baseline"]
    gain = any(pair.p_holm is not None and pair.p_holm < 0.05 and pair.mean_difference > 0 for pair in against)
    ruled_out = all(pair.interval_high is not None and pair.interval_high < 0.01 for pair in against)
    assert results.verdict.outcome == ("helped" if gain else "did not help" if ruled_out else "cannot tell")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (45, "45 s"), (186, "3.1 min"), (3000, "50 min"), (12240, "3.4 h")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert wording.duration(seconds) == text


def test_points_carry_their_sign_and_zero_carries_none():
    assert wording.points(-0.0214) == "−2.1 points"
    assert wording.points(0.0514, unit=False) == "+5.1"
    assert wording.points(-0.0001) == "0.0 points"
