"""What the measures behind three alerts are in healthy trainings: how sure D is, how much mixes differ, the gap.

Their thresholds (monitoring/grafana/limits.py, monitoring/prometheus/rules/alerts.yml) have to lie beyond all of this.
Each line is one training with the settings `quick`; a value is the extreme of a running mean over a tenth of the
training's records, as an alert sees it. "Healthy" is: it came to its end with losses that were finite.

Run: `python benchmarks/training_health.py [DATA ...]` (some three minutes a data set, N and seed on one core).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt

from hydramix_dist.cli.console import TrainingDisplay, error_console
from hydramix_dist.config.load import build, configs_root, read_yaml
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings
from hydramix_dist.orchestration.train import TrainSettings, train
from hydramix_dist.store import Store

MODELS: dict[str, type[TrainSettings]] = {
    "generator": GeneratorTrainingSettings,
    "classifier": ClassifierTrainingSettings,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", nargs="*", help="folders or archives of class folders; none: the built-in photos")
    options.add_argument("--shots", default="1,5,10", help="labelled images a class")
    options.add_argument("--seeds", type=int, default=2)
    chosen = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for data in chosen.data or [None]:
            for shots in map(int, chosen.shots.split(",")):
                for seed in range(chosen.seeds):
                    rows += trainings(data, shots, seed, Path(folder))
                    common.show("so far", rows)
    common.show("extremes of running means over a tenth of a training", rows)
    common.record("training_health", rows=rows)


def trainings(data: str | None, shots: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return a line for a generator, for a classifier without mixes and for one with them."""
    name = f"{Path(data).stem if data else 'photos'}-n{shots}-seed{seed}"
    where = {"data": str(Path(data).resolve()) if data else None, "shots": shots, "seed": seed}
    generator = str(folder / f"{name}-generator")
    lines = []
    for kind, out, more in (
        ("generator", generator, {}),
        ("classifier", str(folder / f"{name}-plain"), {}),
        ("classifier", str(folder / f"{name}-mixed"), {"generator_run": generator}),
    ):
        tree = read_yaml(configs_root() / kind / "quick.yaml") | where | more
        with TrainingDisplay(error_console()) as display:
            train(build(MODELS[kind], tree, kind), Store(out), None, display)
        records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        lines.append({"training": name, "of": kind + (", mixes" if more else "")} | extremes(records))
    return lines


def extremes(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the most extreme running means of a training's records, "-" for what it does not record."""
    real, mixed = (smooth(records, f"discriminator_accuracy_{of}_ratio") for of in ("real", "mixed"))
    scores = [smooth(records, f"score_{of}") for of in ("real", "mixed")]
    diversity, gap = smooth(records, "mix_diversity_ratio"), smooth(records, "generalization_gap_ratio", share=1)
    return {
        "surest D": f"{np.minimum(real, mixed).max():.2f}" if len(real) else "-",
        "widest scores": f"{(scores[0] - scores[1]).max():.2f}" if len(real) else "-",
        "least diversity": f"{diversity.min():.2f}" if len(diversity) else "-",
        "largest gap": f"{gap.max():.2f}" if len(gap) else "-",
        "last gap": f"{gap[-1]:.2f}" if len(gap) else "-",
    }


def smooth(records: Sequence[dict[str, Any]], metric: str, share: int = 10) -> npt.NDArray[np.float64]:
    """Return the running means of a metric over a tenth of its values; with `share` 1 its values as they are."""
    values = np.array([record[metric] for record in records if record.get(metric) is not None])
    width = 1 if share == 1 else max(1, len(values) // share)
    return np.convolve(values, np.ones(width) / width, "valid") if len(values) else values


if __name__ == "__main__":
    main()
