"""Numbers about running trainings: one table of definitions, one way to record them."""

from hydramix_dist.telemetry.metrics import METRICS, JsonlSink, Metric, Recorder, Sink

__all__ = ["METRICS", "JsonlSink", "Metric", "Recorder", "Sink"]
