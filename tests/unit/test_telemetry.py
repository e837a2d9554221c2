"""Records carry only what the table defines, and every line of metrics.jsonl is JSON."""

import json
import math
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.telemetry import METRICS, Histogram, JsonlSink, Recorder, Value

RUN = {"run": "first", "role": "generator"}
TIMES = METRICS["step_seconds"].bounds


def lines_of(values: Mapping[str, Value], **labels: str) -> list[dict[str, object]]:
    written: list[bytes] = []
    Recorder([JsonlSink(written.append)], **RUN).record(8, values, **labels)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in written)
    return [json.loads(line) for line in written]


def test_line_has_time_progress_labels_and_values() -> None:
    (line,) = lines_of({"loss_perceptual": 0.5, "gradient_norm": 2.0}, engine="discriminator")
    assert abs(float(str(line.pop("time"))) - time.time()) < 60
    assert line == {"images": 8, **RUN, "engine": "discriminator", "loss_perceptual": 0.5, "gradient_norm": 2.0}


def test_of_a_histogram_a_line_has_sum_and_count() -> None:
    times = Histogram(TIMES)
    for seconds in (0.25, 0.5, 1000.0):
        times.observe(seconds)
    (line,) = lines_of({"step_seconds": times})
    assert (line["step_seconds_sum"], line["step_seconds_count"]) == (1000.75, 3)
    json_of_empty = lines_of({"step_seconds": Histogram(TIMES)})[0]
    assert (json_of_empty["step_seconds_sum"], json_of_empty["step_seconds_count"]) == (0, 0)


@given(st.lists(st.floats(0, 100) | st.sampled_from(TIMES)))
def test_a_histogram_counts_each_observation_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    times = Histogram(TIMES)
    for value in values:
        times.observe(value)
    for number, bound in enumerate((*TIMES, math.inf)):
        assert sum(times.counts[: number + 1]) == sum(value <= bound for value in values)
    assert times.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_not_finite_becomes_null(bad: float) -> None:
    (line,) = lines_of({"loss_perceptual": bad, "learning_rate": 0.1})
    assert line["loss_perceptual"] is None and line["learning_rate"] == 0.1


def test_unknown_name_and_missing_label_are_refused_before_anything_is_written() -> None:
    written: list[bytes] = []
    recorder = Recorder([JsonlSink(written.append)], **RUN)
    with pytest.raises(KeyError):
        recorder.record(0, {"learning_rate": 1.0, "loss_of_nerve": 1.0})
    with pytest.raises(KeyError, match="engine was not given"):
        recorder.record(0, {"learning_rate": 1.0, "gradient_norm": 1.0})
    with pytest.raises(KeyError, match="run, role was not given"):
        Recorder([JsonlSink(written.append)]).record(0, {"learning_rate": 1.0})
    assert written == []


def test_every_sink_gets_every_record_with_all_labels() -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    recorder = Recorder([JsonlSink(first.append), JsonlSink(second.append)], **RUN)
    for images in (1, 2):
        recorder.record(images, {"images_seen_total": images}, engine="classifier")
    expected = [{"images": n, "images_seen_total": n, **RUN, "engine": "classifier"} for n in (1, 2)]
    for written in (first, second):
        lines = [json.loads(line) for line in written]
        assert all(line.pop("time") > 0 for line in lines) and lines == expected
