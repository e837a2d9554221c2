"""Numbers about running trainings: one table of definitions, one way to record them, one endpoint a node."""

from hydramix_dist.telemetry.recorder import Histogram, JsonlSink, Recorder, Sink, Value
from hydramix_dist.telemetry.sender import Sender, Told
from hydramix_dist.telemetry.table import METRICS, PREFIX, SECTIONS, Metric

__all__ = [
    "METRICS",
    "PREFIX",
    "SECTIONS",
    "Histogram",
    "JsonlSink",
    "Metric",
    "Recorder",
    "Sender",
    "Sink",
    "Told",
    "Value",
]
