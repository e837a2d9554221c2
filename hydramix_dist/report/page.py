"""The report page: one HTML file that needs nothing beside it and asks the network for nothing."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from hydramix_dist.evaluation import wording
from hydramix_dist.evaluation.results import ArmInfo, ArmSummary, PilotResults, RunResult
from hydramix_dist.evaluation.statistics import FEW_SEEDS, baseline_of
from hydramix_dist.report.sheets import Sheet, Tile, save_sheets, sheet_png, tile_png, tiles
from hydramix_dist.store import Store

REPORT_FILE = "report.html"
SHEET_PICTURE = "mixes.png"
_TABLE_CLASSES = 20  # a confusion matrix of more classes is a picture, with its largest confusions in words
_MARKS = {
    "helped": "▲",
    "did not help": "▼",
    "cannot tell": "?",
    "mixed": "◆",
    "too short to judge": "…",
    "nothing to compare": "…",
}


@dataclass(frozen=True)
class Confusion:
    """One arm's confusion at one N, summed over seeds: counts [true][predicted], shares of rows, mistakes."""

    arm: str
    colour: str
    counts: list[list[int]]
    shares: list[list[float]]
    worst: list[tuple[str, str, int, float]]
    picture: str | None


def write_report(store: Store, results: PilotResults, sheets: Sequence[Sheet]) -> None:
    """Write `report.html` into a run folder, and beside it the mixes as `mixes.png` and as arrays, where there are any.

    Results may be partial: the page says which runs are missing. Raises UserError where the disk refuses.
    """
    if sheets:
        store.put(SHEET_PICTURE, sheet_png(sheets))
        save_sheets(store, sheets)
    store.put(REPORT_FILE, render_report(results, sheets, store.path()).encode())


def render_report(results: PilotResults, sheets: Sequence[Sheet], folder: str) -> str:
    """Return the page as HTML. `folder` is the run's path or URL, named in the last section."""
    from hydramix_dist.report import plots  # with matplotlib, which nothing before a page needs

    colours = plots.arm_colours(results.arms)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            r=results,
            folder=folder,
            colours=colours,
            mixing={arm.name: arm.mixing for arm in results.arms},
            missing=_missing(results),
            facts=_facts(results),
            few_seeds=0 < len(results.seeds) < FEW_SEEDS,
            baseline=baseline_of(results.arms).name,
            accuracy=Markup(plots.accuracy_plot(results)) if results.runs else "",
            curves=Markup(plots.curves_plot(results)) if results.runs else "",
            differences={
                shots: Markup(plots.difference_plot(results, shots))
                for shots in results.shots
                if any(pair.shots == shots for pair in results.pairs)
            },
            confusions={shots: _confusions(results, shots, colours) for shots in results.shots},
            common_note={shots: _common_note(results, shots) for shots in results.shots},
            per_class={shots: _per_class(results, shots) for shots in results.shots},
            sheet_groups=_sheet_groups(sheets),
            settings=yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True),
        )
    )


def compare_runs(results: Sequence[PilotResults]) -> str:
    """Return one HTML page with each run's answer and a joint table of its arms."""
    from hydramix_dist.report import plots

    return (
        page_environment()
        .get_template("compare.html.j2")
        .render(runs=[(result, plots.arm_colours(result.arms)) for result in results])
    )


def page_environment() -> jinja2.Environment:
    """Return the templates' environment: names escaped, an unknown variable refused, numbers in words as filters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hydramix_dist.report"),
        autoescape=True,  # names of classes and arms come from the user's folders and files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "duration": wording.duration,
        "times": wording.times,
        "listed": wording.listed,
        "number": lambda value: f"{value:,}".replace(",", " "),
        "p": _p,
        "describe": describe,
        "data_uri": _data_uri,
        "shade": _shade,
    }
    environment.globals |= {"summary_of": summary_of, "mark": _MARKS.__getitem__}
    return environment


def describe(arm: ArmInfo) -> str:
    """Return an arm's make-up in words."""
    augmentation = {"basic": "crop and flip", "trivial": "crop, flip and TrivialAugment"}.get(
        arm.augmentation, arm.augmentation
    )
    mixing = "no mixing"
    if arm.mixing:
        what = "mixes" if arm.generator else "mixes of the pixels"
        mixing = f"{what} of {arm.count} images, {arm.mask} mask"
    own = [f"{key} {value}" for key, value in _leaves(arm.classifier)]
    return "; ".join([augmentation, mixing, *(["its own classifier settings: " + ", ".join(own)] if own else [])])


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def summary_of(results: PilotResults, arm: str, shots: int) -> ArmSummary | None:
    """Return an arm's summary at one N, or None where it has no finished run."""
    return next((s for s in results.summaries if (s.arm, s.shots) == (arm, shots)), None)


def _missing(results: PilotResults) -> list[str]:
    """Return one line for each (N, arm) with missing runs."""
    seeds: dict[tuple[int, str], list[str]] = {}
    for arm, shots, seed in results.missing:
        seeds.setdefault((shots, arm), []).append(str(seed))
    return [
        f"{arm} with N = {shots}: seed{'' if len(missing) == 1 else 's'} {wording.listed(missing)}"
        for (shots, arm), missing in seeds.items()
    ]


def _facts(results: PilotResults) -> list[tuple[str, str]]:
    planned = len(results.arms) * len(results.shots) * len(results.seeds)
    generators = {run.generator_key: run.generator_seconds for run in results.runs if run.generator_key is not None}
    seconds = sum(run.seconds for run in results.runs) + sum(generators.values())
    tested = {run.test_images for run in results.runs}
    return [
        ("images a class", wording.listed([str(shots) for shots in results.shots])),
        ("classes", str(len(results.data.classes))),
        ("methods (arms)", str(len(results.arms))),
        ("seeds", str(len(results.seeds))),
        ("test images", wording.listed([str(count) for count in sorted(tested)]) if tested else "–"),
        ("trainings done", f"{len(results.runs)} of {planned}"),
        ("training time in all", wording.duration(seconds)),
    ]


def _confusions(results: PilotResults, shots: int, colours: dict[str, str]) -> list[Confusion]:
    """Return the confusions of the answer's two arms; where it names none, of the best arm without and with mixing."""
    answer = next(answer for answer in results.verdict.answers if answer.shots == shots)
    names = [name for name in (answer.reference, answer.arm) if name is not None] or _best_of_each(results, shots)
    found: list[Confusion] = []
    for name in names:
        runs = [run for run in results.runs if (run.arm, run.shots) == (name, shots)]
        if runs:
            found.append(_confusion(f"confusion-{shots}-{len(found)}", runs, colours[name], results.data.classes))
    return found


def _best_of_each(results: PilotResults, shots: int) -> list[str]:
    best = []
    for mixing in (False, True):
        names = [arm.name for arm in results.arms if arm.mixing is mixing]
        summaries = [s for s in results.summaries if s.shots == shots and s.arm in names]
        best += [max(summaries, key=lambda s: s.mean).arm] if summaries else []
    return best


def _confusion(name: str, runs: Sequence[RunResult], colour: str, classes: Sequence[str]) -> Confusion:
    from hydramix_dist.report import plots

    size = range(len(classes))
    counts = [[sum(run.confusion[i][j] for run in runs) for j in size] for i in size]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    mistakes = [
        (classes[i], classes[j], counts[i][j], shares[i][j]) for i in size for j in size if i != j and counts[i][j]
    ]
    return Confusion(
        arm=runs[0].arm,
        colour=colour,
        counts=counts,
        shares=shares,
        worst=sorted(mistakes, key=lambda mistake: -mistake[3])[:8],
        picture=Markup(plots.confusion_plot(shares, colour, name)) if len(classes) > _TABLE_CLASSES else None,
    )


def _per_class(results: PilotResults, shots: int) -> dict[str, list[float | None]]:
    """Return, for each class, each arm's mean accuracy on it (None: no finished run, or no test image)."""

    def mean(class_name: str, arm: str) -> float | None:
        values = [run.per_class[class_name] for run in results.runs if (run.arm, run.shots) == (arm, shots)]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return {name: [mean(name, arm.name) for arm in results.arms] for name in results.data.classes}


def _common_note(results: PilotResults, shots: int) -> str | None:
    """Return the note that all comparisons at one N share, to be said once instead of on every line."""
    notes = {pair.note for pair in results.pairs if pair.shots == shots}
    return notes.pop() if len(notes) == 1 else None


def _sheet_groups(sheets: Sequence[Sheet]) -> dict[str, list[tuple[Sheet, list[Tile]]]]:
    groups: dict[str, list[tuple[Sheet, list[Tile]]]] = {}
    for sheet in sheets:
        groups.setdefault(sheet.arm, []).append((sheet, tiles(sheet)))
    return groups


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _shade(share: float, colour: str) -> str:
    """Return the CSS of a cell that is the darker, the larger its share, with text that stays readable on it."""
    mixed = [round(255 + (int(colour[i : i + 2], 16) - 255) * share) for i in (1, 3, 5)]
    bright = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] > 140
    return f"background: #{bytes(mixed).hex()}; color: {'#1c2430' if bright else '#fff'}"


def _data_uri(tile: Tile) -> Any:
    return Markup("data:image/png;base64," + base64.b64encode(tile_png(tile)).decode())
