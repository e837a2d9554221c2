"""A sweep's page and tables: `results.html`, which needs nothing beside it, and the tables in three more formats."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from hydramix_dist.evaluation import wording
from hydramix_dist.evaluation.results import Outcome, PairResult
from hydramix_dist.evaluation.sweep_results import DataPart, SweepResults, TrialLine
from hydramix_dist.report import tables
from hydramix_dist.report.page import page_environment
from hydramix_dist.store import Store

PAGE_FILE = "results.html"
TABLE_FILES = {"results.md": tables.markdown, "results.csv": tables.csv_text, "results.tex": tables.latex}
_LONG = 40  # rows; a longer table of pairs is folded away
# The bad news first, so that nobody has to look for it.
_ORDER: tuple[Outcome, ...] = (
    "did not help",
    "mixed",
    "cannot tell",
    "helped",
    "nothing to compare",
    "too short to judge",
)
_KINDS = {"generator": "generators", "candidate": "candidates of the search", "classifier": "classifiers"}


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set."""

    part: DataPart
    colours: dict[str, str]
    mixing: dict[str, bool]
    cells: dict[tuple[str, int], tables.Cell]
    marks: dict[str, str]
    curves: Markup | None
    counts: Markup | None
    cost: Markup | None
    drawn: int
    pairs: list[PairResult]
    chosen: set[tuple[int, str | None, str | None]]


def write_sweep_page(store: Store, results: SweepResults) -> None:
    """Write `results.html`, `results.md`, `results.csv` and `results.tex` into a sweep's folder.

    Results may be partial: cells without a finished training say what became of it. Raises UserError where the disk
    refuses.
    """
    for name, table in TABLE_FILES.items():
        store.put(name, table(results).encode())
    store.put(PAGE_FILE, render_sweep(results, store.path()).encode())


def render_sweep(results: SweepResults, folder: str) -> str:
    """Return the page as HTML. `folder` is the sweep's path or URL, named in the last section."""
    sections = [_section(results, part, i) for i, part in enumerate(results.parts)]
    return (
        page_environment()
        .get_template("sweep.html.j2")
        .render(
            r=results,
            folder=folder,
            sections=sections,
            answers=sorted(results.parts, key=lambda part: _ORDER.index(part.verdict.outcome)),
            overview=_overview(results.parts),
            facts=_facts(results),
            caption=tables.CAPTION,
            bold_note=tables.BOLD_NOTE,
            long=_LONG,
            trials=_by_state(results.trials),
            states=[word for state, word in tables.STATES.items() if any(t.state == state for t in results.trials)],
            memory=_most_memory(results),
            failed=[trial for trial in results.trials if trial.state == "failed"],
            tables=list(TABLE_FILES),
            settings=yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True),
        )
    )


def _most_memory(results: SweepResults) -> str | None:
    known = [trial.peak_memory_bytes for trial in results.trials if trial.peak_memory_bytes is not None]
    return f"{max(known) / 2**30:.2f} GiB" if known else None


def _section(results: SweepResults, part: DataPart, number: int) -> Section:
    from hydramix_dist.report import plots, sweep_plots  # with matplotlib, which nothing before a page needs

    cells = tables.cells(part, results.trials)

    def picture(svg: str | None) -> Markup | None:
        return None if svg is None else Markup(svg)

    return Section(
        part=part,
        colours=plots.arm_colours(part.arms),
        mixing={arm.name: arm.mixing for arm in part.arms},
        cells=cells,
        marks=tables.marks(cells),
        curves=picture(sweep_plots.accuracy_curves(part, f"curves-{number}")) if part.runs else None,
        counts=picture(sweep_plots.count_heat_map(part, f"counts-{number}")),
        cost=picture(sweep_plots.cost_against_gain(part, f"cost-{number}")),
        drawn=len(sweep_plots.shown_arms(part)),
        pairs=[pair for pair in part.pairs if pair.in_family],
        chosen={(answer.shots, answer.arm, answer.reference) for answer in part.verdict.answers},
    )


def _overview(parts: Sequence[DataPart]) -> str | None:
    """Return the answers over several data sets in one sentence, the bad news first; None for one data set."""
    if len(parts) < 2:
        return None
    words: dict[Outcome, str] = {
        "did not help": "did not help",
        "mixed": "gives answers that differ with N",
        "cannot tell": "cannot be told from chance",
        "helped": "helped",
        "nothing to compare": "has nothing to be compared with yet",
        "too short to judge": "was tried too shortly to judge",
    }
    found = {outcome: [part.name for part in parts if part.verdict.outcome == outcome] for outcome in _ORDER}
    said = [f"{words[outcome]} on {wording.listed(names)}" for outcome, names in found.items() if names]
    return f"Mixing {'; it '.join(said)}."


def _facts(results: SweepResults) -> list[tuple[str, str]]:
    planned = sum(len(part.arms) * len(part.shots) * len(part.seeds) for part in results.parts)
    shots = sorted({n for part in results.parts for n in part.shots})
    seconds = sum(trial.seconds for trial in results.trials if trial.seconds is not None)
    return [
        ("data sets", str(len(results.parts))),
        ("images a class", wording.listed([str(n) for n in shots]) if shots else "–"),
        ("methods (arms)", str(len({arm.name for part in results.parts for arm in part.arms}))),
        ("seeds", str(len({seed for part in results.parts for seed in part.seeds}))),
        ("classifiers compared", f"{sum(len(part.runs) for part in results.parts)} of {planned}"),
        ("trials failed", str(sum(trial.state == "failed" for trial in results.trials))),
        ("training time in all", wording.duration(seconds)),
    ]


def _by_state(trials: Sequence[TrialLine]) -> list[dict[str, Any]]:
    """Return, for each kind of trial that there is, how many are in each state."""
    counts: Counter[tuple[str, str]] = Counter((trial.kind, tables.STATES[trial.state]) for trial in trials)
    return [
        {"kind": word, "counts": {state: counts[kind, state] for state in tables.STATES.values()}}
        for kind, word in _KINDS.items()
        if any(trial.kind == kind for trial in trials)
    ]
