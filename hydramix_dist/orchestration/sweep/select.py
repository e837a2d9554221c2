"""The best setting of a sweep as settings files that `hydramix pilot` and `hydramix train` take."""

from collections.abc import Sequence
from typing import Any

import yaml

from hydramix_dist.config.load import build, dump
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings
from hydramix_dist.errors import UserError, nearest
from hydramix_dist.evaluation.results import ArmSummary
from hydramix_dist.evaluation.sweep_results import DataPart, SweepResults
from hydramix_dist.evaluation.wording import percent
from hydramix_dist.orchestration.sweep.design import with_values
from hydramix_dist.orchestration.sweep.standing import Line, Standing
from hydramix_dist.store import Store


def write_selected(
    standing: Standing, results: SweepResults, folder: Store, arm: str | None, shots: int | None
) -> list[str]:
    """Write the best arm's settings, or those of `arm`, at the largest N or `shots`; return what to say of them.

    `pilot.yaml` has the arm beside the best one without mixing, `classifier.yaml` and `generator.yaml` train it alone.
    Of several data sets each has a folder of its own. Raises UserError where nothing of that name is finished.
    """
    said: list[str] = []
    for part in results.parts:
        target = folder if len(results.parts) == 1 else folder.child(part.name)
        said += _write(standing, results, part, target, arm, shots)
    return said


def _write(
    standing: Standing, results: SweepResults, part: DataPart, folder: Store, arm: str | None, shots: int | None
) -> list[str]:
    best = _best(part, arm, shots)
    plain = {info.name for info in part.arms if not info.mixing}
    references = [s for s in part.summaries if s.shots == best.shots and s.arm in plain]
    names = list(dict.fromkeys([s.arm for s in sorted(references, key=lambda s: -s.mean)[:1]] + [best.arm]))
    whole = standing.whole
    for name in names:
        whole = with_values(whole, name, _chosen(results, part, name, best.shots))
    tree = dump(whole)
    used = {tree["arms"][name]["generator"] for name in names} - {None}
    tree |= {"shots": [best.shots], "arms": {name: tree["arms"][name] for name in names}}
    tree["generators"] = {name: value for name, value in tree["generators"].items() if name in used}
    data = str(standing.data[part.name]["url"])
    note = f"{best.arm} at N = {best.shots}: {percent(best.mean)} of the test images, {best.n} seeds"
    if arm is None:
        arms = sum(1 for summary in part.summaries if summary.shots == best.shots)
        note += (
            f", the best of {arms} arms there. Chosen by that very number, it flatters: look at the arm again on "
            "images that had no say"
        )
    said = [note]
    pilot = build(PilotSettings, tree, "the settings selected")
    said.append(_put(folder, "pilot.yaml", dump(pilot), note, f"hydramix pilot {data} --preset"))
    finished = _first_finished(standing, part.name, best)
    common = {"data": data, "shots": best.shots, "seed": finished.facts["seed"], "validation": whole.validation}
    common["runtime"] = dump(whole.runtime)
    settings = pilot.arms[best.arm]
    if settings.generator is not None:
        alone = common | {"generator": tree["generators"][settings.generator]}
        build(GeneratorTrainingSettings, alone, "the settings selected")
        said.append(_put(folder, "generator.yaml", alone, note, "hydramix train generator"))
    key = finished.result["generator_key"]
    shared = Store(standing.record["facts"]["shared"])
    alone = common | {
        "test_limit": whole.test_limit,
        "augmentation": settings.augmentation,
        "generator_run": None if key is None else shared.path(f"generators/{key}"),
        "pixels": tree["arms"][best.arm]["pixels"],
        "classifier": dump(pilot.classifier_of(best.arm)),
    }
    build(ClassifierTrainingSettings, alone, "the settings selected")
    said.append(_put(folder, "classifier.yaml", alone, note, "hydramix train classifier"))
    return said


def _best(part: DataPart, arm: str | None, shots: int | None) -> ArmSummary:
    finished = [summary for summary in part.summaries if summary.n]
    if not finished:
        raise UserError(f"{part.name}: no classifier is finished yet, nothing can be selected")
    values: Sequence[int] = sorted({summary.shots for summary in finished})
    if shots is not None and shots not in values:
        raise UserError(f"--shots {shots}: {part.name} has finished results at N = {', '.join(map(str, values))}")
    here = [summary for summary in finished if summary.shots == (shots or values[-1])]
    names = [summary.arm for summary in here]
    if arm is not None and arm not in names:
        raise UserError(
            f"--arm '{arm}' has no finished result there{nearest(arm, names)}; there are {', '.join(names)}"
        )
    asked = [summary for summary in here if arm in (None, summary.arm)]
    most = max(summary.n for summary in asked)  # a mean of fewer seeds is the luckier one
    return max((summary for summary in asked if summary.n == most), key=lambda summary: summary.mean)


def _chosen(results: SweepResults, part: DataPart, arm: str, shots: int) -> dict[str, Any]:
    """Return the values that the search chose for an arm, none where nothing was searched."""
    found = [c for c in results.choices if (c.data, c.arm) == (part.name, arm) and shots in c.for_shots]
    return dict(found[0].values) if found else {}


def _first_finished(standing: Standing, data: str, best: ArmSummary) -> Line:
    """Return the arm's finished classifier of the first seed that has one: with its generator, where it needed one."""
    keys = (f"classifiers/{data}/{best.arm}-n{best.shots}-seed{seed}" for seed in standing.whole.seeds)
    return next(line for key in keys if (line := standing.lines[key]).state == "done")


def _put(folder: Store, name: str, tree: dict[str, Any], note: str, command: str) -> str:
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    folder.put(name, f"# {note}\n# {command} {folder.path(name)}\n{text}".encode())
    return f"wrote {folder.path(name)}  ({command} {folder.path(name)})"
