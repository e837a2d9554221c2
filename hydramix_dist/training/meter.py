"""What a training records of its steps: terms now and then, the time of each, and what follows from them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hydramix_dist.telemetry import METRICS, Histogram, Recorder

RECORD_SECONDS = 2.0  # at most one record in this time: reading a loss makes a GPU wait


@dataclass(frozen=True)
class Noted:
    """A step's terms by metric name, and its gradients' norms by engine; tensors until they are recorded."""

    terms: dict[str, Tensor | float]
    norms: dict[str, Tensor | float]


class Meter:
    """Records steps every `RECORD_SECONDS` and where it is told to, with the speed since the last record."""

    def __init__(self, recorder: Recorder, images: int, total: int, checkpoints: int) -> None:
        """Take the images seen so far and in all, and how many checkpoints there are to be."""
        self._recorder, self._first, self._total, self._checkpoints = recorder, images, total, checkpoints
        self._images = self._recorded_images = images
        self._began = self._recorded = self._stepped = time.monotonic()
        self._steps = Histogram(METRICS["step_seconds"].bounds)
        self._accuracies: list[float] = []  # on training batches that were recorded since the last evaluation

    def due(self) -> bool:
        """Return whether the step that comes is to be recorded."""
        return time.monotonic() - self._recorded >= RECORD_SECONDS

    def step(self, images: int, noted: Noted | None) -> None:
        """Take the end of a step: its time, and, to be recorded, what was noted; read from the device only then."""
        now = time.monotonic()
        self._steps.observe(now - self._stepped)
        self._stepped, self._images = now, images
        if noted is None:
            return
        values = {name: float(value) for name, value in noted.terms.items()}
        if "train_accuracy_ratio" in values:
            self._accuracies.append(values["train_accuracy_ratio"])
        self._recorder.record(images, {**values, **self._progress(now), "step_seconds": self._steps})
        for engine, norm in noted.norms.items():
            self._recorder.record(images, {"gradient_norm": float(norm)}, engine=engine)
        self._recorded_images, self._recorded = images, now

    def _progress(self, now: float) -> dict[str, float]:
        """Return how far it is and how fast: since the last record, and for checkpoints since it began."""
        seen, moment = self._images - self._first, 1e-9
        all_in_all = seen / max(now - self._began, moment)  # evaluations and saves take their part of an interval
        return {
            "images_seen_total": seen,
            "progress_ratio": self._images / self._total,
            "images_per_second": (self._images - self._recorded_images) / max(now - self._recorded, moment),
            "checkpoint_interval_seconds": self._total / self._checkpoints / all_in_all,
        }

    def evaluated(self, images: int, metrics: Mapping[str, float]) -> None:
        """Record an evaluation, with the gap to the accuracy on training batches since the one before."""
        held_out = metrics.get("validation_accuracy_ratio", metrics.get("test_accuracy_ratio"))
        gap = {}
        if held_out is not None and self._accuracies:
            gap = {"generalization_gap_ratio": sum(self._accuracies) / len(self._accuracies) - held_out}
        self._accuracies.clear()
        self._recorder.record(images, {**metrics, **gap})

    def go_on(self) -> None:
        """Begin the next step's time now: evaluations and checkpoints are none of it."""
        self._stepped = time.monotonic()

    def stopped_not_finite(self) -> None:
        """Record that the training has stopped for a number that was not finite."""
        self._recorder.record(self._images, {"nonfinite_stops_total": 1})
