"""From the finished runs of a pilot to its `results.json`, at any moment, also while runs are missing."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from hydramix_dist.config.load import dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.evaluation.results import ArmInfo, DataSummary, PilotResults, RunResult
from hydramix_dist.evaluation.statistics import compare, summarize
from hydramix_dist.evaluation.verdict import judge


def assemble(
    settings: PilotSettings,
    runs: Sequence[RunResult],
    data: DataSummary,
    *,
    name: str,
    preset: str | None,
    warnings: Sequence[str],
    versions: Mapping[str, str],
    machine: Mapping[str, str],
) -> PilotResults:
    """Return the pilot's results with summaries, comparisons and verdict computed from the runs finished so far."""
    arms = arm_infos(settings)
    summaries, pairs = summarize(arms, runs), compare(arms, runs)
    planned = len(arms) * len(settings.shots) * len(settings.seeds)
    verdict = judge(arms, settings.shots, summaries, pairs, decisive=settings.verdict, missing=planned - len(runs))
    return PilotResults(
        name=name,
        preset=preset,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arms=arms,
        shots=settings.shots,
        seeds=settings.seeds,
        runs=tuple(runs),
        summaries=summaries,
        pairs=pairs,
        verdict=verdict,
        data=data,
        warnings=tuple(warnings),
        settings=dump(settings),
        versions=dict(versions),
        machine=dict(machine),
    )


def arm_infos(settings: PilotSettings) -> tuple[ArmInfo, ...]:
    """Return the description of each arm, in the settings' order."""

    def info(name: str) -> ArmInfo:
        arm = settings.arms[name]
        mix = settings.mix_of(name)
        return ArmInfo(
            name=name,
            augmentation=arm.augmentation,
            generator=arm.generator,
            count=None if mix is None else mix.count,
            mask=None if mix is None else mix.mask.kind + (", shares" if mix.mask.assign == "shares" else ""),
            classifier=arm.classifier,
        )

    return tuple(info(name) for name in settings.arms)
