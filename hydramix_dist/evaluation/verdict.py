"""The answer: does mixing add to the best arm WITHOUT mixing? Two sentences that a manager can read.

The rule (our choice), at each N. Reference: the arm without mixing that has the best mean accuracy. Each arm with
mixing is compared with it on paired seeds.
- helped: some mixing arm is above the reference with a Holm-corrected p below 0.05.
- did not help: else, if for every mixing arm the whole 95 % interval lies below +1 point (so a gain worth having is
  ruled out; arms that are significantly worse are among these).
- cannot tell: else, and always under 3 seeds.
Choosing the best plain arm by the same results favours it a little, so the rule errs against mixing.
"""

from collections.abc import Sequence

from hydramix_dist.evaluation.results import Answer, ArmInfo, ArmSummary, Outcome, PairResult, Verdict
from hydramix_dist.evaluation.statistics import MIN_SEEDS
from hydramix_dist.evaluation.wording import capital, duration, images, listed, percent, points, times

ALPHA = 0.05
WORTH_HAVING = 0.01  # one point of accuracy

_TOO_SHORT = (
    "Too short to judge: this run only checks that every part works, so its accuracies say nothing about mixing.",
    "For an answer, run the pilot again with a longer preset, for example: hydramix pilot --preset quick.",
)
_NOTHING = (
    "There is nothing to compare yet: an answer needs at least one finished arm with mixing and one without, on the "
    "same subset.",
    "Add the missing arm with --arms, or let the pilot finish.",
)
# The bad news first, so that nobody has to look for it.
_ORDER: tuple[Outcome, ...] = ("did not help", "cannot tell", "helped", "nothing to compare")


def judge(
    arms: Sequence[ArmInfo],
    shots: Sequence[int],
    summaries: Sequence[ArmSummary],
    pairs: Sequence[PairResult],
    *,
    decisive: bool = True,
    missing: int = 0,
) -> Verdict:
    """Return the verdict over all N. `decisive` false (a preset too short to judge) gives no answer at all.

    Where `missing` runs are still to come, the first sentence starts by saying so.
    """
    if not decisive:
        answers = tuple(Answer(shots=n, outcome="too short to judge", sentences=_TOO_SHORT) for n in shots)
        return Verdict(outcome="too short to judge", sentences=_TOO_SHORT, answers=answers)
    answers = tuple(_answer(arms, n, summaries, pairs) for n in shots)
    outcome: Outcome = answers[0].outcome if len({answer.outcome for answer in answers}) == 1 else "mixed"
    first, second = answers[0].sentences if len(answers) == 1 else _joint_sentences(answers, pairs)
    if missing:
        first = f"Not finished ({missing} run{'' if missing == 1 else 's'} missing), so far: {first}"
    return Verdict(outcome=outcome, sentences=(first, second), answers=answers)


def _answer(
    arms: Sequence[ArmInfo], shots: int, summaries: Sequence[ArmSummary], pairs: Sequence[PairResult]
) -> Answer:
    at_shots = {summary.arm: summary for summary in summaries if summary.shots == shots}
    plain = [at_shots[arm.name] for arm in arms if not arm.mixing and arm.name in at_shots]
    if not plain:
        return Answer(shots=shots, outcome="nothing to compare", sentences=_NOTHING)
    reference = max(plain, key=lambda summary: summary.mean)
    mixing = {arm.name for arm in arms if arm.mixing}
    family = [pair for pair in pairs if pair.shots == shots]
    candidates = [pair for pair in family if pair.reference == reference.arm and pair.arm in mixing]
    if not candidates:
        return Answer(shots=shots, outcome="nothing to compare", sentences=_NOTHING)
    outcome, pair = _decide(candidates)
    ours = at_shots[pair.arm]
    of_pixels = any(arm.name == pair.arm and arm.generator is None for arm in arms)
    cost = (ours.seconds + ours.generator_seconds, reference.seconds)
    tested = sum(other.p_value is not None for other in family)
    return Answer(
        shots=shots,
        outcome=outcome,
        arm=pair.arm,
        reference=reference.arm,
        cost_ratio=cost[0] / cost[1] if cost[1] > 0 else None,
        sentences=(_first_sentence(outcome, pair, of_pixels=of_pixels), _second_sentence(outcome, pair, tested, cost)),
    )


def _decide(candidates: Sequence[PairResult]) -> tuple[Outcome, PairResult]:
    """Return the outcome and the comparison that carries it: the best of those that led to it."""

    def best(found: Sequence[PairResult]) -> PairResult:
        return max(found, key=lambda pair: pair.mean_difference)

    gains = [pair for pair in candidates if _significant(pair) and pair.mean_difference > 0]
    if gains:
        return "helped", best(gains)
    undecided = [pair for pair in candidates if pair.interval_high is None or pair.interval_high >= WORTH_HAVING]
    return ("cannot tell", best(undecided)) if undecided else ("did not help", best(candidates))


def _significant(pair: PairResult) -> bool:
    return pair.p_holm is not None and pair.p_holm < ALPHA


def _first_sentence(outcome: Outcome, pair: PairResult, *, of_pixels: bool) -> str:
    harmed = _significant(pair) and pair.mean_difference < 0
    opening = {
        "helped": "Mixing helped",
        "did not help": "Mixing did not help, it made the result worse" if harmed else "Mixing did not help",
        "cannot tell": f"Cannot tell at this number of seeds ({len(pair.seeds)}) whether mixing helps",
    }[outcome]
    arm = f"{pair.arm} (mixes of pixels, no generator)" if of_pixels else pair.arm
    return (
        f"{opening}: with {images(pair.shots)}, {arm} names {percent(pair.arm_mean)} of the test images "
        f"correctly, and {pair.reference}, the best method without mixing, {percent(pair.reference_mean)}."
    )


def _second_sentence(outcome: Outcome, pair: PairResult, tested: int, cost: tuple[float, float]) -> str:
    price = f"training takes {duration(cost[0])} with mixing and {duration(cost[1])} without"
    if cost[1] > 0:
        price += f", {times(cost[0] / cost[1])} as long"
    change = f"the difference of {points(pair.mean_difference)}"
    if pair.interval_low is None or pair.interval_high is None:
        fewer = len(pair.seeds) < MIN_SEEDS
        reason = f"at least {MIN_SEEDS} seeds are needed, 5 are better" if fewer else f"{pair.note}"
        return f"Nothing yet says whether {change} is more than chance ({reason}); {price}."
    low, high = points(pair.interval_low, unit=False), points(pair.interval_high, unit=False)
    span = f"95 % interval {low} to {high}, {len(pair.seeds)} seeds"
    if outcome == "helped":
        return f"{capital(change)} ({span}) is larger than chance explains; {price}."
    if outcome == "did not help":
        return f"{capital(change)} ({span}) rules out a gain of a point or more; {price}."
    if pair.interval_low > 0:
        return f"{capital(change)} ({span}) could still be chance, since {tested} comparisons were made; {price}."
    return f"{capital(change)} could be chance ({span}), so run more seeds before deciding; {price}."


def _joint_sentences(answers: Sequence[Answer], pairs: Sequence[PairResult]) -> tuple[str, str]:
    wording = {
        "did not help": "did not help",
        "cannot tell": "cannot be told from chance",
        "helped": "helped",
        "nothing to compare": "has nothing to be compared with yet",
    }
    parts = []
    for outcome in _ORDER:
        counts = [str(answer.shots) for answer in answers if answer.outcome == outcome]
        if counts:
            parts.append(f"{wording[outcome]} with {listed(counts)} labelled images per class")
    return f"Mixing {'; it '.join(parts)}.", _joint_details(answers, pairs)


def _joint_details(answers: Sequence[Answer], pairs: Sequence[PairResult]) -> str:
    """Return the second sentence for several N: each comparison once, with its difference at every N it decided."""
    changes: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        for pair in pairs:
            if (pair.shots, pair.arm, pair.reference) == (answer.shots, answer.arm, answer.reference):
                change = f"{points(pair.mean_difference)} with {pair.shots} images{_span(pair)}"
                changes.setdefault((pair.arm, pair.reference), []).append(change)
    if not changes:
        return _NOTHING[1]
    parts = [f"{arm} against {reference} {listed(found)}" for (arm, reference), found in changes.items()]
    ratios = sorted(answer.cost_ratio for answer in answers if answer.cost_ratio is not None)
    price = ""
    if ratios:
        span = times(ratios[0]) if times(ratios[0]) == times(ratios[-1]) else f"{ratios[0]:.1f} to {times(ratios[-1])}"
        price = f"; training with mixing takes {span} as long"
    return f"Differences from the best method without mixing (95 % intervals): {'; '.join(parts)}{price}."


def _span(pair: PairResult) -> str:
    if pair.interval_low is None or pair.interval_high is None:
        return " (no interval)"
    return f" ({points(pair.interval_low, unit=False)} to {points(pair.interval_high, unit=False)})"
