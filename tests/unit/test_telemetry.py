"""Records carry only what the table defines, and every line of metrics.jsonl is JSON."""

import json
import re
import time

import pytest

from hydramix_dist.telemetry import METRICS, JsonlSink, Recorder


def lines_of(values: dict[str, float], role: str = "generator", images: int = 8) -> list[dict[str, object]]:
    written: list[bytes] = []
    Recorder([JsonlSink(written.append)], role=role).record(images, values)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in written)
    return [json.loads(line) for line in written]


def test_line_has_time_progress_labels_and_values() -> None:
    (line,) = lines_of({"loss_perceptual": 0.5, "learning_rate": 1e-3})
    assert abs(float(str(line.pop("time"))) - time.time()) < 60
    assert line == {"images": 8, "role": "generator", "loss_perceptual": 0.5, "learning_rate": 1e-3}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_not_finite_becomes_null(bad: float) -> None:
    (line,) = lines_of({"loss_perceptual": bad, "learning_rate": 0.1})
    assert line["loss_perceptual"] is None and line["learning_rate"] == 0.1


def test_unknown_name_and_foreign_label_are_refused_before_anything_is_written() -> None:
    written: list[bytes] = []
    with pytest.raises(KeyError):
        Recorder([JsonlSink(written.append)], role="x").record(0, {"learning_rate": 1.0, "loss_of_nerve": 1.0})
    with pytest.raises(KeyError, match="colour"):
        Recorder([JsonlSink(written.append)], colour="red").record(0, {"learning_rate": 1.0})
    assert written == []


def test_every_sink_gets_every_record() -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    recorder = Recorder([JsonlSink(first.append), JsonlSink(second.append)], role="classifier")
    for images in (1, 2):
        recorder.record(images, {"images_seen_total": images})
    assert len(first) == len(second) == 2


def test_table_follows_prometheus_naming() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name and re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.meaning and (metric.unit != "ratio" or name.endswith("_ratio"))
        assert metric.unit != "seconds" or name.endswith("_seconds")
