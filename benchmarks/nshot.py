"""Does mixing add to the strong simple augmentations? The comparisons behind docs/results.md.

    python benchmarks/nshot.py benchmarks/nshot/choose.yaml DATA     candidates, judged on validation parts
    python benchmarks/nshot.py benchmarks/nshot/compare.yaml DATA    the committed settings, on test images

Runs a preset as `hydramix pilot` does, in `--out` (runs/nshot/... by default), resumable, and prints for each arm its
mean and deviation over the seeds, the paired difference from the reference arm with its 95 % interval, and its time.
A preset with a validation part is judged by that part alone: not one accuracy on test images is printed.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hydramix_dist.cli.console import LiveDisplay, error_console
from hydramix_dist.config.load import build, read_yaml
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.evaluation.results import PairResult, PilotResults, RunResult
from hydramix_dist.evaluation.statistics import compare, summarize
from hydramix_dist.orchestration.collect import loss_curve
from hydramix_dist.orchestration.pilot import run_pilot
from hydramix_dist.store import Store


def judged(results: PilotResults, store: Store, *, by_validation: bool) -> list[RunResult]:
    """Return the runs, where asked for with the last step's accuracy on the validation part as their accuracy."""
    if not by_validation:
        return list(results.runs)
    found = []
    for run in results.runs:
        folder = store.child(f"classifiers/{run.arm}-n{run.shots}-seed{run.seed}")
        found.append(run.model_copy(update={"accuracy": loss_curve(folder, "validation_accuracy_ratio")[-1][1]}))
    return found


def difference(pairs: Sequence[PairResult], arm: str, reference: str, shots: int) -> str:
    """Return "mean (low to high)" in points of an arm against a reference, either way round; "" where not compared."""
    for pair in pairs:
        if pair.shots == shots and {pair.arm, pair.reference} == {arm, reference}:
            sign = 1 if pair.arm == arm else -1
            ends = sorted(sign * (math.nan if end is None else end) for end in (pair.interval_low, pair.interval_high))
            return f"{100 * sign * pair.mean_difference:+.1f} ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
    return ""


def show(results: PilotResults, runs: Sequence[RunResult], part: str, reference: str) -> None:
    """Print a table and a JSON line for each N."""
    pairs = compare(results.arms, runs)
    summaries = summarize(results.arms, runs)
    console = Console(width=150)
    for shots in results.shots:
        table = Table(box=None, pad_edge=False, title=f"{results.data.name}, {part} images", title_justify="left")
        for heading in ("arm", "seeds", "mean %", "sd", f"against {reference}, points (95 %)", "seconds", "by seed"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        line: dict[str, object] = {"benchmark": "nshot", "data": results.data.name, "part": part, "shots": shots}
        for summary in summaries:
            if summary.shots != shots:
                continue
            accuracies = [run.accuracy for run in runs if run.arm == summary.arm and run.shots == shots]
            table.add_row(
                summary.arm,
                str(summary.n),
                f"{100 * summary.mean:.1f}",
                "-" if summary.sd is None else f"{100 * summary.sd:.1f}",
                difference(pairs, summary.arm, reference, shots),
                f"{summary.seconds + summary.generator_seconds:.0f}",
                " ".join(f"{100 * value:.1f}" for value in accuracies),
            )
            line[summary.arm] = [round(value, 4) for value in accuracies]
        console.print(table)
        print(json.dumps(line))


def main() -> None:
    """Run one preset on one data set and show what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", type=Path)
    parser.add_argument("data", help="folder of class folders, archive, or an imported set")
    parser.add_argument("--out", help="folder of the run")
    parser.add_argument("--reference", default="trivialaugment", help="arm that the others are compared with")
    options = parser.parse_args()
    name = f"{options.preset.stem}-{Path(options.data).name.partition('.')[0]}"
    store = Store(options.out or f"runs/nshot/{name}")
    settings = build(PilotSettings, read_yaml(options.preset), str(options.preset))
    with LiveDisplay(error_console()) as display:
        outcome = run_pilot(Store(options.data).url, settings, str(options.preset), store, display)
    by_validation = settings.validation > 0
    runs = judged(outcome.results, store, by_validation=by_validation)
    show(outcome.results, runs, "validation" if by_validation else "test", options.reference)


if __name__ == "__main__":
    main()
