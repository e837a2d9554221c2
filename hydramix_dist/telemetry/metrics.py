"""The table of metrics and `Recorder`, which checks names against it and hands values to sinks.

Names follow Prometheus: base units, `_total` on counters only. The exported prefix is `hydramix_`; the JSON-lines
file leaves it away.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True)
class Metric:
    """One metric's definition; `labels` are the only label names it may carry."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str


_ROLE = ("role",)  # generator or classifier
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("images_seen_total", "counter", "images", _ROLE, "training images (mixes, for the generator) seen"),
        Metric("learning_rate", "gauge", "", _ROLE, "learning rate of the last step"),
        Metric(
            "loss_reconstruction",
            "gauge",
            "",
            _ROLE,
            "mean squared reconstruction error summed over sources, times 2/K",
        ),
        Metric(
            "loss_perceptual", "gauge", "", _ROLE, "Laplacian-pyramid L1 between reconstruction and source, times 2/K"
        ),
        Metric("loss_adversarial", "gauge", "", _ROLE, "generator's least-squares loss on the score of its mixes"),
        Metric("loss_discriminator", "gauge", "", _ROLE, "discriminator's least-squares loss on real and mixed images"),
        Metric("score_real", "gauge", "", _ROLE, "mean discriminator score of real images; 1 is the target"),
        Metric(
            "score_mixed", "gauge", "", _ROLE, "mean discriminator score of mixed images; the discriminator aims at 0"
        ),
        Metric("loss_cross_entropy", "gauge", "nats", _ROLE, "classifier's cross-entropy on its batches"),
        Metric(
            "train_accuracy_ratio", "gauge", "ratio", _ROLE, "accuracy on the training batches, mixed ones included"
        ),
        Metric("test_accuracy_ratio", "gauge", "ratio", _ROLE, "accuracy on the test images"),
        Metric("validation_accuracy_ratio", "gauge", "ratio", _ROLE, "accuracy on the validation part of the subset"),
        Metric("images_per_second", "gauge", "images/s", _ROLE, "training speed since the last record"),
        Metric("checkpoint_seconds", "gauge", "seconds", _ROLE, "time the last checkpoint took until it was whole"),
        Metric(
            "checkpoint_stall_seconds", "gauge", "seconds", _ROLE, "time training stood still for the last checkpoint"
        ),
        Metric(
            "checkpoint_fallbacks_total", "counter", "checkpoints", _ROLE, "broken checkpoints passed over at loading"
        ),
        Metric("store_requests_total", "counter", "requests", _ROLE, "requests to object storage, tries included"),
        Metric("store_retries_total", "counter", "requests", _ROLE, "requests to object storage that were tried again"),
        Metric("store_read_bytes_total", "counter", "bytes", _ROLE, "bytes read from object storage"),
        Metric("cache_hits_total", "counter", "reads", _ROLE, "reads of a data set that the node's cache answered"),
        Metric("cache_misses_total", "counter", "reads", _ROLE, "reads of a data set that it did not"),
        Metric("nonfinite_stops_total", "counter", "stops", _ROLE, "trainings stopped by a loss that was not finite"),
    )
}


class Sink(Protocol):
    """Where records go; one call a record."""

    def write(self, values: Mapping[str, float], labels: Mapping[str, str], images: int) -> None:
        """Take the values of one moment; `images` is the training's progress."""


class JsonlSink:
    """One JSON object a line: time (Unix seconds), images, labels and values."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        self._append = append

    def write(self, values: Mapping[str, float], labels: Mapping[str, str], images: int) -> None:
        """Append one line; a value that is not finite is written as null, for JSON has no other word."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"time": round(time.time(), 3), "images": images, **labels, **finite}
        self._append((json.dumps(line) + "\n").encode())


class Recorder:
    """Checks each record against the table and passes it to every sink."""

    def __init__(self, sinks: Sequence[Sink], **labels: str) -> None:
        self._sinks, self._labels = sinks, labels

    def record(self, images: int, values: Mapping[str, float]) -> None:
        """Hand on the values of one moment. Raises KeyError for a name that is not in the table, or a foreign label."""
        for name in values:
            metric = METRICS[name]
            if set(self._labels) - set(metric.labels):
                raise KeyError(f"{name} carries labels {metric.labels}, not {tuple(self._labels)}")
        for sink in self._sinks:
            sink.write(values, self._labels, images)
