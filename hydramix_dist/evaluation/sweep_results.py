"""The schema of a sweep's `results.json`, and how finished trainings become it: one comparison for each data set.

Shares and accuracies lie in [0, 1]; times are seconds. A cell of the tables, an arm at one N, is judged by its
finished trainings alone; those that are pending or failed are counted by their trials, never replaced by a guess.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.evaluation.assemble import arm_infos
from hydramix_dist.evaluation.results import (
    RESULTS_FILE,
    ArmInfo,
    ArmSummary,
    Measured,
    Outcome,
    PairResult,
    Record,
    Seconds,
    Share,
    Verdict,
    missing_runs,
    read_record,
)
from hydramix_dist.evaluation.statistics import compare, summarize
from hydramix_dist.evaluation.verdict import judge
from hydramix_dist.store import Store

SCHEMA_VERSION = 1
Kind = Literal["generator", "candidate", "classifier"]
State = Literal["pending", "running", "done", "early", "failed", "left"]

_MANY_ARMS = 12  # beyond it the pairs outside the family, which grow with the square of the arms, are left out
# The verdict's own advice is a pilot's.
_ADVICE: Mapping[Outcome, str] = {
    "too short to judge": "For an answer, run the sweep again with longer trainings and verdict: true.",
    "nothing to compare": "Add an arm of the missing kind under arms, or let the sweep finish.",
}


class TrialLine(Record):
    """One training of a sweep, and what became of it."""

    key: str
    kind: Kind
    data: Annotated[str, Field(description="name of the data set")]
    arm: Annotated[str | None, Field(description="null: a generator, which several arms may share")] = None
    shots: int
    seed: int
    state: Annotated[State, Field(description="early: stopped early by the search; left: not begun, a limit was met")]
    attempts: Annotated[int, Field(ge=0, description="times it was begun")] = 0
    seconds: Seconds | None = None
    error: Annotated[str | None, Field(description="why it failed")] = None
    peak_memory_bytes: Annotated[
        int | None, Field(description="most memory of its process, of the GPU's where it trained on one")
    ] = None
    value: Annotated[Share | None, Field(description="validation accuracy of a candidate")] = None


class Choice(Record):
    """The settings that a search chose for one arm."""

    data: str
    arm: str
    shots: Annotated[int, Field(description="N that they were chosen at")]
    values: Annotated[dict[str, Any], Field(description="key of a setting -> the value chosen")]
    score: Annotated[Share, Field(description="mean validation accuracy")]
    candidates: Annotated[int, Field(ge=0, description="candidates finished")]
    for_shots: Annotated[tuple[int, ...], Field(description="each N that is trained with them")]


class DataPart(Record):
    """The comparison on one data set."""

    name: str
    arms: tuple[ArmInfo, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[Measured, ...]
    summaries: tuple[ArmSummary, ...]
    pairs: tuple[PairResult, ...]
    verdict: Verdict

    @property
    def missing(self) -> tuple[tuple[str, int, int], ...]:
        """Return (arm, shots, seed) of each planned run without a result, in the sweep's order."""
        return missing_runs(self.arms, self.shots, self.seeds, self.runs)


class GeneratorUse(Record):
    """How often trained generators served the finished classifiers."""

    needed: Annotated[int, Field(description="finished classifiers that draw mixes of a generator")]
    trained: Annotated[int, Field(description="generators that these draw from, each trained once")]
    reused: Annotated[int, Field(description="classifiers that took a generator trained for another: needed - trained")]
    seconds: Annotated[Seconds, Field(description="training of these generators, each counted once")]


class SweepResults(Record):
    """Everything a sweep measured and concluded: the content of its `results.json`."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(description="the sweep's name")]
    created: Annotated[str, Field(description="time of writing, ISO 8601")]
    parts: Annotated[tuple[DataPart, ...], Field(description="one for each data set")]
    trials: tuple[TrialLine, ...]
    choices: tuple[Choice, ...]
    generators: GeneratorUse
    warnings: tuple[str, ...] = ()
    settings: Annotated[dict[str, Any], Field(description="the resolved settings, every default written out")]
    versions: dict[str, str]
    machine: dict[str, str]


@dataclass(frozen=True)
class Gain:
    """What a mixing arm gains at one N over the best arm without mixing, over common seeds, and what it costs.

    `difference`, `low` and `high` (95 % interval; None: under 3 seeds or no spread) are shares; `cost_ratio` is
    training time, generator included, over the reference's (None: the reference took no time).
    """

    arm: str
    reference: str
    shots: int
    seeds: int
    difference: float
    low: float | None
    high: float | None
    cost_ratio: float | None


def assemble_sweep(
    name: str,
    parts: Sequence[tuple[str, PilotSettings, Sequence[Measured]]],
    trials: Sequence[TrialLine],
    choices: Sequence[Choice],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    machine: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> SweepResults:
    """Return a sweep's results with tables, comparisons and verdicts computed from the runs finished so far.

    `parts` holds, for each data set, its name, its comparison with every axis expanded into arms, and what was
    measured; of a RunResult only what Measured has is kept.
    """
    return SweepResults(
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parts=tuple(
            data_part(title, arm_infos(plan), plan.shots, plan.seeds, runs, decisive=plan.verdict)
            for title, plan, runs in parts
        ),
        trials=tuple(trials),
        choices=tuple(choices),
        generators=_generator_use(parts),
        warnings=tuple(warnings),
        settings=dict(settings),
        versions=dict(versions),
        machine=dict(machine),
    )


def data_part(
    name: str,
    arms: Sequence[ArmInfo],
    shots: Sequence[int],
    seeds: Sequence[int],
    runs: Sequence[Measured],
    *,
    decisive: bool = True,
) -> DataPart:
    """Return the comparison on one data set; `decisive` false: trainings too short to judge, and no answer."""
    summaries = summarize(arms, runs)
    pairs = compare(arms, runs, others=len(arms) <= _MANY_ARMS)
    missing = len(missing_runs(arms, shots, seeds, runs))
    return DataPart(
        name=name,
        arms=tuple(arms),
        shots=tuple(shots),
        seeds=tuple(seeds),
        runs=tuple(_measured(run) for run in runs),
        summaries=summaries,
        pairs=pairs,
        verdict=_advised(judge(arms, shots, summaries, pairs, decisive=decisive, missing=missing)),
    )


def gains(part: DataPart) -> tuple[Gain, ...]:
    """Return each mixing arm's gain at each N where it has common seeds with the best arm without mixing."""
    return tuple(_gains(part))


def cost(summary: ArmSummary) -> float:
    """Return the seconds that one training of an arm takes: its classifier and, each time anew, its generator."""
    return summary.seconds + summary.generator_seconds


def save_sweep_results(store: Store, results: SweepResults) -> None:
    """Write `results.json` into a sweep's folder, as a whole. Raises UserError where the disk refuses."""
    store.put(RESULTS_FILE, (results.model_dump_json(indent=1) + "\n").encode())


def load_sweep_results(store: Store) -> SweepResults:
    """Return a sweep's results. Raises UserError where they are absent, broken, a pilot's or of a newer schema."""
    return read_record(
        store,
        SweepResults,
        version=SCHEMA_VERSION,
        key="parts",
        writer="sweep",
        anew="delete it and resume the sweep, which writes it anew",
    )


def _gains(part: DataPart) -> Iterator[Gain]:
    pairs = {(pair.arm, pair.reference, pair.shots): pair for pair in part.pairs}
    cells = {(summary.arm, summary.shots): summary for summary in part.summaries}
    for shots in part.shots:
        plain = [cells[arm.name, shots] for arm in part.arms if not arm.mixing and (arm.name, shots) in cells]
        if not plain:
            continue
        reference = max(plain, key=lambda summary: summary.mean)
        for arm in part.arms:
            pair = pairs.get((arm.name, reference.arm, shots))
            if arm.mixing and pair is not None:
                yield Gain(
                    arm=arm.name,
                    reference=reference.arm,
                    shots=shots,
                    seeds=len(pair.seeds),
                    difference=pair.mean_difference,
                    low=pair.interval_low,
                    high=pair.interval_high,
                    cost_ratio=cost(cells[arm.name, shots]) / cost(reference) if cost(reference) > 0 else None,
                )


def _generator_use(parts: Sequence[tuple[str, PilotSettings, Sequence[Measured]]]) -> GeneratorUse:
    # A key covers the data's fingerprint, the subset and all settings: equal key, the same generator.
    drawn = [run for _, _, runs in parts for run in runs if run.generator_key is not None]
    seconds = {run.generator_key: run.generator_seconds for run in drawn}
    return GeneratorUse(
        needed=len(drawn), trained=len(seconds), reused=len(drawn) - len(seconds), seconds=sum(seconds.values())
    )


def _measured(run: Measured) -> Measured:
    if type(run) is Measured:
        return run
    return Measured.model_validate({field: getattr(run, field) for field in Measured.model_fields})


def _advised(verdict: Verdict) -> Verdict:
    """Return the verdict with a sweep's way out in place of a pilot's."""
    answers = tuple(
        answer.model_copy(update={"sentences": (answer.sentences[0], _ADVICE[answer.outcome])})
        if answer.outcome in _ADVICE
        else answer
        for answer in verdict.answers
    )
    second = _ADVICE.get(verdict.outcome, verdict.sentences[1])
    return verdict.model_copy(update={"answers": answers, "sentences": (verdict.sentences[0], second)})
