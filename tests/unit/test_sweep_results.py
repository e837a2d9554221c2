"""A sweep's results: from finished trainings to records, comparisons, gains, and back from the file."""

import json
import time
from typing import Any

import pytest
from pydantic import ValidationError
from results_factory import pilot, run, settings

from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.results import ArmInfo, Measured, RunResult, load_results, save_results
from hydramix_dist.evaluation.statistics import compare
from hydramix_dist.evaluation.sweep_results import (
    Choice,
    DataPart,
    SweepResults,
    TrialLine,
    assemble_sweep,
    data_part,
    gains,
    load_sweep_results,
    save_sweep_results,
)
from hydramix_dist.store import Store

PLAN = settings(("baseline", "trivialaugment", "hydramix"), (5, 10))
RUNS = [
    run(arm, seed, 0.5 + 0.02 * i + 0.013 * seed + 0.004 * i * seed + n / 100, n)
    for n in PLAN.shots
    for i, arm in enumerate(PLAN.arms)
    for seed in PLAN.seeds
]
TRIALS = [
    TrialLine(key="c1", kind="classifier", data="steel", arm="baseline", shots=5, seed=0, state="done", attempts=1),
    TrialLine(key="g1", kind="generator", data="steel", shots=5, seed=0, state="failed", attempts=3, error="no memory"),
]
CHOICES = [
    Choice(data="steel", arm="baseline", shots=5, values={"lr": 0.1}, score=0.6, candidates=7, for_shots=(5, 10)),
]
PLAIN = ArmInfo(name="plain", augmentation="basic")
MIXED = ArmInfo(name="mixed", augmentation="basic", generator="g", count=3, mask="segments")


def sweep(runs: list[RunResult] = RUNS, **changes: bool) -> SweepResults:
    plan = PLAN.model_copy(update=changes)
    return assemble_sweep(
        "first",
        [("steel", plan, runs)],
        TRIALS,
        CHOICES,
        {"shots": [5, 10]},
        {"torch": "2.13.0"},
        {"device": "cpu"},
        ["w"],
    )


def measured(arm: str, seed: int, accuracy: float, seconds: float = 40.0, generator: float = 0.0) -> Measured:
    return Measured(
        arm=arm,
        shots=5,
        seed=seed,
        accuracy=accuracy,
        balanced_accuracy=accuracy,
        seconds=seconds,
        generator_seconds=generator,
        test_images=100,
    )


def part_of(plain: list[float], mixed: list[float], seconds: float = 40.0) -> DataPart:
    runs = [measured("plain", i, value, seconds) for i, value in enumerate(plain)]
    runs += [measured("mixed", i, value, 50.0, 150.0) for i, value in enumerate(mixed)]
    return data_part("steel", (PLAIN, MIXED), (5,), tuple(range(max(len(plain), len(mixed)))), runs)


def test_results_come_back_as_they_were_saved(tmp_path):
    store = Store(tmp_path)
    save_sweep_results(store, sweep())
    assert load_sweep_results(store) == sweep().model_copy(update={"created": load_sweep_results(store).created})


def test_a_data_set_is_judged_as_a_pilot_judges_it():
    part = sweep().parts[0]
    alone = pilot({arm: tuple(r.accuracy for r in RUNS if (r.arm, r.shots) == (arm, 5)) for arm in PLAN.arms})
    at_five = [s for s in part.summaries if s.shots == 5]
    assert [s.mean for s in at_five] == pytest.approx([s.mean for s in alone.summaries])
    assert [p for p in part.pairs if p.shots == 5] == list(compare(part.arms, [r for r in RUNS if r.shots == 5]))
    assert part.verdict.answers[0].outcome == alone.verdict.outcome


def test_of_a_run_only_what_is_compared_is_kept():
    tree = json.loads(sweep().model_dump_json())
    assert set(tree["parts"][0]["runs"][0]) == set(Measured.model_fields)
    assert "confusion" not in tree["parts"][0]["runs"][0]


def test_generators_are_counted_by_the_classifiers_that_draw_from_them():
    shared = [r.model_copy(update={"arm": "trivialaugment"}) for r in RUNS if r.arm == "hydramix"]
    use = sweep([r for r in RUNS if r.arm != "trivialaugment"] + shared).generators
    assert (use.needed, use.trained, use.reused) == (12, 6, 6)
    assert use.seconds == pytest.approx(6 * 131.0)


def test_missing_runs_are_named_and_told_in_the_answer():
    part = sweep([r for r in RUNS if (r.arm, r.shots, r.seed) != ("hydramix", 10, 1)]).parts[0]
    assert part.missing == (("hydramix", 10, 1),)
    assert part.verdict.sentences[0].startswith("Not finished (1 run missing)")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (sweep(verdict=False), "run the sweep again"),
        (sweep([r for r in RUNS if r.arm != "hydramix"]), "let the sweep finish"),
    ],
)
def test_without_an_answer_the_way_out_is_a_sweeps(results, words):
    verdict = results.parts[0].verdict
    assert words in verdict.sentences[1]
    assert all(words in answer.sentences[1] for answer in verdict.answers)
    assert "pilot" not in str(verdict)


def test_pairs_outside_the_family_are_left_out_where_there_are_many_arms():
    def pairs(count: int) -> list[bool]:
        arms = [PLAIN, *(MIXED.model_copy(update={"name": f"m{i}"}) for i in range(count - 1))]
        runs = [measured(arm.name, seed, 0.5 + 0.01 * seed) for arm in arms for seed in range(3)]
        return [pair.in_family for pair in data_part("steel", arms, (5,), (0, 1, 2), runs).pairs]

    assert len(pairs(12)) == 12 * 11 // 2 and pairs(12).count(True) == 11
    assert pairs(13) == [True] * 12


def test_gain_and_cost_are_against_the_best_arm_without_mixing():
    worse = PLAIN.model_copy(update={"name": "worse"})
    part = part_of([0.5, 0.6, 0.55], [0.52, 0.63, 0.59])
    runs = [*part.runs, *(measured("worse", i, 0.3) for i in range(3))]
    (gain,) = gains(data_part("steel", (worse, PLAIN, MIXED), (5,), (0, 1, 2), runs))
    assert (gain.arm, gain.reference, gain.shots, gain.seeds) == ("mixed", "plain", 5, 3)
    assert gain.difference == pytest.approx(0.03)
    assert gain.cost_ratio == pytest.approx(200 / 40)
    assert gain.low is not None and gain.high is not None and gain.low < 0.03 < gain.high


def test_gain_has_no_interval_where_statistics_give_none_and_no_ratio_without_time():
    (two,) = gains(part_of([0.5, 0.6], [0.52, 0.63], seconds=0.0))
    assert (two.low, two.high, two.cost_ratio) == (None, None, None)
    (equal,) = gains(part_of([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]))
    assert (equal.low, equal.difference) == (None, 0.0)


@pytest.mark.parametrize("part", [part_of([], [0.5]), part_of([0.5], []), part_of([], [])])
def test_no_gain_without_both_kinds(part):
    assert gains(part) == ()


def test_ten_thousand_runs_take_seconds():
    arms = [PLAIN, *(MIXED.model_copy(update={"name": f"m{i}"}) for i in range(499))]
    runs = [
        measured(arm.name, seed, 0.4 + i % 7 / 50 + seed * (i % 3) / 90).model_copy(update={"shots": n})
        for n in (5, 10, 20, 50)
        for i, arm in enumerate(arms)
        for seed in range(5)
    ]
    begin = time.process_time()
    part = data_part("steel", arms, (5, 10, 20, 50), range(5), runs)
    assert time.process_time() - begin < 30  # quadratic work takes minutes
    assert len(part.summaries) == 2000 and len(part.pairs) == 4 * 499


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, ["newer", "schema 2", "results.json"]),
        ({"surprise": 1}, ["surprise", "results.json", "resume the sweep"]),
        ({"trials": [{"key": "x"}]}, ["trials.0", "results.json"]),
    ],
)
def test_files_that_cannot_be_read_are_refused_in_words(tmp_path, changes: dict[str, Any], words):
    Store(tmp_path).put("results.json", json.dumps(json.loads(sweep().model_dump_json()) | changes).encode())
    with pytest.raises(UserError) as error:
        load_sweep_results(Store(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_absent_and_broken_files_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="does not exist; name the folder of a sweep"):
        load_sweep_results(Store(tmp_path))
    (tmp_path / "results.json").write_text('{"schema_version": 1, "na')
    with pytest.raises(UserError, match="not valid JSON"):
        load_sweep_results(Store(tmp_path))


def test_pilots_and_sweeps_are_not_taken_for_each_other_nor_called_damaged(tmp_path):
    store = Store(tmp_path)
    save_sweep_results(store, sweep())
    with pytest.raises(UserError, match="no pilot wrote it"):
        load_results(store)
    save_results(store, pilot({"baseline": (0.5,), "hydramix": (0.6,)}))
    with pytest.raises(UserError, match="no sweep wrote it"):
        load_sweep_results(store)


@pytest.mark.parametrize("bad", [{"state": "lost"}, {"kind": "other"}, {"seconds": -1.0}, {"value": 1.1}, {"new": 0}])
def test_impossible_trials_never_enter_the_results(bad):
    with pytest.raises(ValidationError):
        TrialLine.model_validate(TRIALS[0].model_dump() | bad)
