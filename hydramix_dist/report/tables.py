"""A sweep's tables as Markdown, CSV and LaTeX: for each data set the arms in rows, each N in a column.

Cells of Markdown and LaTeX are "mean ± spread (n)" in per cent, with letters for what a reader must know beside the
numbers; CSV has one line a cell, with shares as in `results.json`.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hydramix_dist.evaluation import wording
from hydramix_dist.evaluation.results import ArmSummary, PairResult
from hydramix_dist.evaluation.statistics import MIN_SEEDS, baseline_of
from hydramix_dist.evaluation.sweep_results import DataPart, SweepResults, TrialLine

STATES: Mapping[str, str] = {
    "pending": "not begun",
    "running": "running",
    "done": "finished",
    "early": "stopped early",
    "failed": "failed",
    "left": "left out",
}
CAPTION = (
    "Test accuracy in per cent: mean ± standard deviation over seeds (number of finished seeds). "
    "N is the number of labelled images a class."
)
BOLD_NOTE = f"Bold: the highest mean at its N, where that rests on {MIN_SEEDS} seeds or more."
_SAME = 1e-9  # means that are equal but for rounding share the first place
_SUMMARY = ("n", "mean", "sd", "low", "high", "balanced_mean", "seconds", "generator_seconds")
_DIFFERENCE = ("baseline", "difference", "difference_low", "difference_high", "p", "p_holm")
_COLUMNS = ("data", "arm", "N", *_SUMMARY, *_DIFFERENCE, "note")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "{}&%$#_"},
}


@dataclass(frozen=True)
class Cell:
    """An arm at one N: its summary (None: no finished training), notes on it, and whether it is the best there."""

    arm: str
    shots: int
    summary: ArmSummary | None
    notes: tuple[str, ...]
    best: bool

    @property
    def text(self) -> str:
        """Return "71.2 ± 1.3 (5)" in per cent; without a spread "71.2 (1)"; "– (0)" without a finished training."""
        if self.summary is None:
            return "– (0)"
        spread = "" if self.summary.sd is None else f" ± {100 * self.summary.sd:.1f}"
        return f"{100 * self.summary.mean:.1f}{spread} ({self.summary.n})"


def cells(part: DataPart, trials: Sequence[TrialLine]) -> dict[tuple[str, int], Cell]:
    """Return the cell of each (arm, N), in the order of arms, then N; `trials` tell what became of missing seeds."""
    summaries = {(summary.arm, summary.shots): summary for summary in part.summaries}
    fates: dict[tuple[str, int], Counter[str]] = {}
    states = {
        (trial.arm, trial.shots, trial.seed): trial.state
        for trial in trials
        if trial.kind == "classifier" and trial.data == part.name
    }
    for arm, shots, seed in part.missing:
        fates.setdefault((arm, shots), Counter())[states.get((arm, shots, seed), "pending")] += 1
    winners = {shots: _winners(part, shots) for shots in part.shots}
    return {
        (arm.name, shots): Cell(
            arm=arm.name,
            shots=shots,
            summary=summaries.get((arm.name, shots)),
            notes=tuple(_notes(summaries.get((arm.name, shots)), fates.get((arm.name, shots), Counter()))),
            best=arm.name in winners[shots],
        )
        for arm in part.arms
        for shots in part.shots
    }


def marks(found: Mapping[tuple[str, int], Cell]) -> dict[str, str]:
    """Return a letter for each note in the cells, in order of appearance: a to z, then aa, ab and so on."""
    notes = dict.fromkeys(note for cell in found.values() for note in cell.notes)
    return {note: _letters(i) for i, note in enumerate(notes)}


def markdown(results: SweepResults) -> str:
    """Return the answers and tables as Markdown, a section for each data set."""
    lines = [f"# Sweep {_md(results.name)}", "", CAPTION, ""]
    for part in results.parts:
        found = cells(part, results.trials)
        letters = marks(found)

        def shown(cell: Cell, letters: Mapping[str, str] = letters) -> str:
            text = f"**{cell.text}**" if cell.best else cell.text
            mark = ",".join(letters[note] for note in cell.notes)
            return f"{text} <sup>{mark}</sup>" if mark else text

        lines += [f"## {_md(part.name)}", "", _md(" ".join(part.verdict.sentences)), ""]
        lines += ["| method | " + " | ".join(f"N = {shots}" for shots in part.shots) + " |"]
        lines += ["|---|" + "---:|" * len(part.shots)]
        for arm in part.arms:
            row = [_md(arm.name), *(shown(found[arm.name, shots]) for shots in part.shots)]
            lines.append(f"| {' | '.join(row)} |")
        lines += ["", *(f"- <sup>{mark}</sup> {_md(note)}" for note, mark in letters.items())]
        lines += [f"- {BOLD_NOTE}"] if any(cell.best for cell in found.values()) else []
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def latex(results: SweepResults) -> str:
    """Return the tables as LaTeX, a `table` for each data set; the document needs the package booktabs."""
    lines = [r"% Needs \usepackage{booktabs}."]
    for part in results.parts:
        found = cells(part, results.trials)
        letters = marks(found)
        lines += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(CAPTION)} Data: {_tex(part.name)}.}}",
            rf"\begin{{tabular}}{{l{'r' * len(part.shots)}}}",
            r"\toprule",
            " & ".join(["method", *(f"$N = {shots}$" for shots in part.shots)]) + r" \\",
            r"\midrule",
        ]
        for arm in part.arms:
            row = [_tex(arm.name)]
            for shots in part.shots:
                cell = found[arm.name, shots]
                text = _tex(cell.text).replace("–", "--")
                mark = ",".join(letters[note] for note in cell.notes)
                row.append(
                    (rf"\textbf{{{text}}}" if cell.best else text) + (rf"\textsuperscript{{{mark}}}" if mark else "")
                )
            lines.append(" & ".join(row) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
        notes = [rf"\textsuperscript{{{mark}}} {_tex(note)}." for note, mark in letters.items()]
        notes += [BOLD_NOTE] if any(cell.best for cell in found.values()) else []
        lines += [rf"\smallskip\footnotesize {' '.join(notes)}"] if notes else []
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def csv_text(results: SweepResults) -> str:
    """Return one CSV line for each data set, arm and N: shares and seconds, empty where there is no number.

    The difference is that to the arm named under `baseline` over common seeds, arm minus baseline.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for part in results.parts:
        baseline = baseline_of(part.arms).name
        pairs = {(pair.arm, pair.shots): pair for pair in _against(part, baseline)}
        for cell in cells(part, results.trials).values():
            line: dict[str, object] = {"data": part.name, "arm": cell.arm, "N": cell.shots, "n": 0}
            if (summary := cell.summary) is not None:
                ends = {"low": summary.interval_low, "high": summary.interval_high}
                line |= {column: getattr(summary, column) for column in _SUMMARY if column not in ends} | ends
            if (pair := pairs.get((cell.arm, cell.shots))) is not None:
                line |= {"baseline": baseline, "difference": pair.mean_difference}
                line |= {"difference_low": pair.interval_low, "difference_high": pair.interval_high}
                line |= {"p": pair.p_value, "p_holm": pair.p_holm}
            writer.writerow(line | {"note": "; ".join(cell.notes)})
    return buffer.getvalue()


def _against(part: DataPart, baseline: str) -> Iterator[PairResult]:
    """Yield each arm's comparison with the baseline, turned round where the baseline was compared with the arm."""
    for pair in part.pairs:
        if pair.reference == baseline:
            yield pair
        elif pair.arm == baseline:
            low, high = pair.interval_low, pair.interval_high
            turned = {
                "arm": pair.reference,
                "reference": pair.arm,
                "arm_mean": pair.reference_mean,
                "reference_mean": pair.arm_mean,
                "mean_difference": -pair.mean_difference,
                "interval_low": None if high is None else -high,
                "interval_high": None if low is None else -low,
            }
            yield pair.model_copy(update=turned)


def _winners(part: DataPart, shots: int) -> set[str]:
    """Return the arms to be shown as best at one N: none where the highest mean rests on too few seeds."""
    found = [summary for summary in part.summaries if summary.shots == shots]
    best = max((summary.mean for summary in found), default=0.0)
    first = [summary for summary in found if best - summary.mean < _SAME]
    if len(first) == len(found) or any(summary.n < MIN_SEEDS for summary in first):
        return set()
    return {summary.arm for summary in first}


def _notes(summary: ArmSummary | None, fate: Counter[str]) -> Iterator[str]:
    if summary is not None and summary.n < MIN_SEEDS:
        yield f"{summary.n} seed{'' if summary.n == 1 else 's'}: no interval"
    elif summary is not None and summary.note is not None:
        yield summary.note
    if fate:
        # A trial that is done without a run among the results waits to be collected.
        words = {**STATES, "done": "finished, not yet collected"}
        yield wording.listed([f"{fate[state]} {word}" for state, word in words.items() if fate[state]])


def _letters(index: int) -> str:
    first, last = divmod(index, 26)
    return (_letters(first - 1) if first else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def _md(text: str) -> str:
    """Return text that stands for itself on one line of Markdown and in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))


def _tex(text: str) -> str:
    """Return text that stands for itself on one line of LaTeX."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
