"""From finished run folders to the numbers that are compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.evaluation.metrics import score
from hydramix_dist.evaluation.results import DataSummary, RunResult
from hydramix_dist.orchestration.tasks import ClassifierTask
from hydramix_dist.store import Store


def run_result(
    task: ClassifierTask, result: Mapping[str, Any], generator: Mapping[str, Any] | None, dataset: Dataset
) -> RunResult:
    """Return one classifier's scores, costs and curves; `generator` is the result of the training it used, or None."""
    labels_N = torch.from_numpy(dataset.labels("test")[list(task.test_rows)])
    scores = score(torch.tensor(result["predictions"]), labels_N, dataset.classes)
    return RunResult(
        arm=task.arm,
        shots=task.shots,
        seed=task.seed,
        accuracy=scores.accuracy,
        balanced_accuracy=scores.balanced_accuracy,
        per_class=scores.per_class,
        confusion=scores.confusion,
        test_curve=tuple((int(images), float(value)) for images, value in result["test_curve"]),
        train_loss_curve=loss_curve(Store(task.folder_url), "loss_cross_entropy"),
        seconds=result["seconds"],
        generator_seconds=0.0 if generator is None else generator["seconds"],
        generator_key=task.generator_key,
        images_seen=result["images_seen"],
        peak_memory_bytes=result["peak_memory_bytes"],
        test_images=len(task.test_rows),
    )


def loss_curve(store: Store, metric: str) -> tuple[tuple[int, float], ...]:
    """Return a metric's (images seen, value) pairs from `metrics.jsonl`; of a repeated stretch the later."""
    points: dict[int, float] = {}
    for line in (store.get("metrics.jsonl") or b"").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the last line of a process killed while writing
            continue
        if record.get(metric) is not None:
            points[int(record["images"])] = float(record[metric])
    return tuple(sorted(points.items()))


def data_summary(dataset: Dataset, name: str) -> DataSummary:
    """Return what the report says about the data set."""
    manifest = dataset.manifest
    return DataSummary(
        name=name,
        classes=dataset.classes,
        counts=dict(zip(dataset.classes, manifest.counts["train"], strict=True)),
        side=dataset.side,
        test_images=len(dataset.labels("test")),
        source=manifest.source,
        licence=manifest.licence,
        fingerprint=dataset.fingerprint,
    )


def subset_record(dataset: Dataset, train: Sequence[int], validation: Sequence[int]) -> dict[str, Any]:
    """Return the ids of a subset, for the run's `subsets/` files."""
    ids = dataset.ids("train")
    return {
        "fingerprint": dataset.fingerprint,
        "train": [ids[row] for row in train],
        "validation": [ids[row] for row in validation],
    }
