"""Paired statistics over seeds. Arms with the same (shots, seed) share a subset, so their accuracies form pairs.

The interval and the p-value are those of the paired t test over seeds: they speak of other draws of N images and
other initial weights, judged on the same test images. The family that Holm's correction covers, for each N: every
arm with mixing against every arm without, and every other arm against the baseline. The choice of family is ours.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from hydramix_dist.evaluation.results import ArmInfo, ArmSummary, Measured, PairResult

LEVEL = 0.95
MIN_SEEDS = 3  # with two, a t interval has one degree of freedom and says next to nothing
FEW_SEEDS = 5
FEW_SEEDS_NOTE = "few seeds"
# Accuracies are counts divided by counts: differences that are equal but for rounding count as equal.
_EQUAL = 1e-9


def summarize(arms: Sequence[ArmInfo], runs: Sequence[Measured]) -> tuple[ArmSummary, ...]:
    """Return mean, spread and 95 % interval of each arm at each N that has finished runs, in order of N, then arm."""
    groups: dict[tuple[int, str], list[Measured]] = {}
    for run in runs:
        groups.setdefault((run.shots, run.arm), []).append(run)
    cells = ((shots, arm.name) for shots in sorted({run.shots for run in runs}) for arm in arms)
    return tuple(_summary(groups[cell]) for cell in cells if cell in groups)


def compare(arms: Sequence[ArmInfo], runs: Sequence[Measured], *, others: bool = True) -> tuple[PairResult, ...]:
    """Return a comparison of each pair of arms at each N over the seeds both have; the family's with Holm's correction.

    The family comes first; the pairs outside it (two arms with mixing, two without) are for information and have no
    corrected p-value; they are left out where `others` is false. A comparison without a common seed is left out. One
    without a p-value (fewer than 3 seeds, or differences that are all equal) says why in its note and does not count
    in the correction.
    """
    family_names = list(comparisons(arms))
    other_names = list(_other_pairs(arms)) if others else []
    accuracy: dict[int, dict[str, dict[int, float]]] = {}
    for run in runs:
        accuracy.setdefault(run.shots, {}).setdefault(run.arm, {})[run.seed] = run.accuracy
    results: list[PairResult] = []
    for shots, by_arm in sorted(accuracy.items()):
        family = [_pair(by_arm, arm, reference, shots) for arm, reference in family_names]
        outside = [_pair(by_arm, arm, reference, shots) for arm, reference in other_names]
        results += _corrected([pair for pair in family if pair is not None])
        results += [pair.model_copy(update={"in_family": False}) for pair in outside if pair is not None]
    return tuple(results)


def baseline_of(arms: Sequence[ArmInfo]) -> ArmInfo:
    """Return the arm named "baseline"; else the first without mixing; else the first."""
    named = [arm for arm in arms if arm.name == "baseline"]
    plain = [arm for arm in arms if not arm.mixing]
    return (named + plain + list(arms))[0]


def comparisons(arms: Sequence[ArmInfo]) -> Iterator[tuple[str, str]]:
    """Yield the family's (arm, reference) names, each once: mixing against plain arms, then all against baseline."""
    baseline = baseline_of(arms)
    mixing_against_plain = [(arm.name, plain.name) for plain in arms if not plain.mixing for arm in arms if arm.mixing]
    all_against_baseline = [(arm.name, baseline.name) for arm in arms if arm is not baseline]
    seen: set[frozenset[str]] = set()
    for arm, reference in mixing_against_plain + all_against_baseline:
        # Where the baseline itself mixes, a pair would come up in both directions.
        if frozenset((arm, reference)) not in seen:
            seen.add(frozenset((arm, reference)))
            yield arm, reference


def _other_pairs(arms: Sequence[ArmInfo]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of arms that are not in the family, the later arm of each against the earlier."""
    family = {frozenset(pair) for pair in comparisons(arms)}
    for first, second in itertools.combinations(arms, 2):
        if frozenset((first.name, second.name)) not in family:
            yield second.name, first.name


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down corrected p-values, in the order given, each in [p, 1]."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _summary(runs: Sequence[Measured]) -> ArmSummary:
    values = [run.accuracy for run in runs]
    low, high, _, note = _t_test(values)
    return ArmSummary(
        arm=runs[0].arm,
        shots=runs[0].shots,
        n=len(runs),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        interval_low=low,
        interval_high=high,
        balanced_mean=float(np.mean([run.balanced_accuracy for run in runs])),
        seconds=float(np.mean([run.seconds for run in runs])),
        generator_seconds=float(np.mean([run.generator_seconds for run in runs])),
        note=note,
    )


def _pair(by_arm: dict[str, dict[int, float]], arm: str, reference: str, shots: int) -> PairResult | None:
    """Return the comparison over the seeds that both arms have in `by_arm` (arm -> seed -> accuracy); None: no seed."""
    seeds = sorted(by_arm.get(arm, {}).keys() & by_arm.get(reference, {}).keys())
    if not seeds:
        return None
    ours, theirs = ([by_arm[name][seed] for seed in seeds] for name in (arm, reference))
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    low, high, p, note = _t_test(differences)
    return PairResult(
        arm=arm,
        reference=reference,
        shots=shots,
        seeds=tuple(seeds),
        arm_mean=float(np.mean(ours)),
        reference_mean=float(np.mean(theirs)),
        mean_difference=float(np.mean(differences)),
        spread=float(np.std(differences, ddof=1)) if len(seeds) > 1 else None,
        interval_low=low,
        interval_high=high,
        p_value=p,
        note=note,
    )


def _t_test(values: Sequence[float]) -> tuple[float | None, float | None, float | None, str | None]:
    """Return interval low and high, p of a zero mean, and a note; the first three None where they would mislead."""
    if len(values) < MIN_SEEDS:
        seeds = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
        return None, None, None, f"{seeds}: an interval needs at least {MIN_SEEDS}"
    if max(values) - min(values) < _EQUAL:
        # An interval of zero width would claim certainty that so few equal values do not give.
        return None, None, None, f"all {len(values)} values are equal: their spread cannot be estimated"
    from scipy import stats  # a second of imports, for the end of a comparison

    test = stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(LEVEL)
    note = FEW_SEEDS_NOTE if len(values) < FEW_SEEDS else None
    return float(interval.low), float(interval.high), float(test.pvalue), note


def _corrected(pairs: Sequence[PairResult]) -> list[PairResult]:
    tested = [pair for pair in pairs if pair.p_value is not None]
    corrected = iter(holm([pair.p_value for pair in tested if pair.p_value is not None]))
    return [pair if pair.p_value is None else pair.model_copy(update={"p_holm": next(corrected)}) for pair in pairs]
