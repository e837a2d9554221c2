"""`Recorder` checks what a training tells against the table of metrics and hands it to sinks."""

import bisect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hydramix_dist.telemetry.table import METRICS


@dataclass
class Histogram:
    """How many observations lie in each bucket, up to and with its upper bound, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)  # one a bucket, the last one above all bounds; not cumulative
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Take one observation."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


Value = float | Histogram


class Sink(Protocol):
    """Where records go; one call a record."""

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        """Take the values of one moment; `images` is the training's progress.

        Counters and histograms are totals since the training began in this process.
        """


class JsonlSink:
    """One JSON object a line: time (Unix seconds), images, labels and values; of a histogram its sum and count."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        self._append = append

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        """Append one line; a value that is not finite is written as null, for JSON has no other word."""
        line = {"time": round(time.time(), 3), "images": images, **labels}
        for name, value in values.items():
            if isinstance(value, Histogram):
                line |= {f"{name}_sum": value.sum, f"{name}_count": sum(value.counts)}
            else:
                line[name] = value if math.isfinite(value) else None
        self._append((json.dumps(line) + "\n").encode())


class Recorder:
    """Checks each record against the table and passes it to every sink."""

    def __init__(self, sinks: Sequence[Sink], **labels: str) -> None:
        self._sinks, self._labels = sinks, labels

    def record(self, images: int, values: Mapping[str, Value], **labels: str) -> None:
        """Hand on the values of one moment, with labels of their own beside the recorder's.

        Raises KeyError for a name that is not in the table, and for a metric whose labels are not all given.
        """
        own = self._labels | labels
        for name in values:
            missing = [label for label in METRICS[name].labels if label not in own]
            if missing:
                raise KeyError(f"{name} carries the labels {METRICS[name].labels}; {', '.join(missing)} was not given")
        for sink in self._sinks:
            sink.write(values, own, images)
