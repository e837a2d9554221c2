"""What an exporter shows of many sources: totals add up whatever happens, gauges of the killed are gone."""

import logging
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydramix_dist.telemetry.recorder import Histogram, Value
from hydramix_dist.telemetry.series import Series
from hydramix_dist.telemetry.table import METRICS
from hydramix_dist.telemetry.wire import LABEL_CHARACTERS, numbers

RUN = ("first", "generator")
LABELS = {"run": "first", "role": "generator", "arm": "both"}
LOST = "processes_lost_total"
EXPIRE = 10.0
COUNTER, STEPS = "images_seen_total", "step_seconds"
MEAN, SUM, LARGEST, SMALLEST = (
    "learning_rate",
    "trainings",
    "world_size",
    "checkpoint_last_success_timestamp_seconds",
)


def shown(series: Series) -> dict[str, Value]:
    """Return the values of the metrics that have one series, by name."""
    found = {metric.name: rows for metric, rows in series.shown()}
    return {name: rows[0][1] for name, rows in found.items() if len(rows) == 1}


def tell(series: Series, source: str, **values: float) -> None:
    series.connect(source)
    series.update(source, [(name, RUN, [value]) for name, value in values.items()])


def two_sources(**values: tuple[float, float]) -> Series:
    series = Series(EXPIRE)
    for number, source in enumerate("ab"):
        tell(series, source, **{name: pair[number] for name, pair in values.items()})
    return series


# ---- gauges


def test_gauges_of_living_sources_are_combined_as_the_table_says() -> None:
    series = two_sources(
        learning_rate=(1.0, 2.0),
        trainings=(1.0, 1.0),
        world_size=(4.0, 2.0),
        checkpoint_last_success_timestamp_seconds=(70.0, 50.0),
    )
    assert [METRICS[name].combine for name in (MEAN, SUM, LARGEST, SMALLEST)] == ["mean", "sum", "max", "min"]
    assert shown(series) == {MEAN: 1.5, SUM: 2.0, LARGEST: 4.0, SMALLEST: 50.0}


@pytest.mark.parametrize("name", [MEAN, SUM, LARGEST, SMALLEST])
@pytest.mark.parametrize("first", [True, False])
def test_one_value_that_is_none_shows(name: str, first: bool) -> None:
    values = (math.nan, 1.0) if first else (1.0, math.nan)
    value = shown(two_sources(**{name: values}))[name]
    assert isinstance(value, float) and math.isnan(value)


def test_the_last_to_end_in_order_leaves_its_gauges_and_no_sums() -> None:
    series = two_sources(learning_rate=(1.0, 2.0), trainings=(1.0, 1.0))
    series.goodbye("a", 0.0)
    assert shown(series) == {MEAN: 2.0, SUM: 1.0}
    series.goodbye("b", 1.0)
    assert shown(series) == {MEAN: 2.0}
    series.expire(1.0 + EXPIRE - 0.1)
    assert shown(series) == {MEAN: 2.0}
    series.expire(1.0 + EXPIRE)
    assert shown(series) == {}


def test_a_kept_gauge_stays_until_a_living_source_knows_better() -> None:
    series = Series(EXPIRE)
    tell(series, "a", learning_rate=1.0, world_size=4.0)
    series.goodbye("a", 0.0)
    tell(series, "b", learning_rate=9.0)
    assert shown(series) == {MEAN: 9.0, LARGEST: 4.0}
    series.lost("b", 1.0)
    assert shown(series) == {LARGEST: 4.0}


def test_a_killed_source_takes_its_gauges_with_it_and_leaves_those_of_others() -> None:
    series = two_sources(learning_rate=(1.0, 2.0), trainings=(1.0, 1.0), images_seen_total=(10.0, 20.0))
    series.lost("a", 0.0)
    assert shown(series) == {MEAN: 2.0, SUM: 1.0, COUNTER: 30.0}
    series.lost("b", 0.0)
    assert shown(series) == {COUNTER: 30.0}
    assert series.sources == 0


# ---- counters and histograms


def test_counters_stay_as_long_as_gauges_and_begin_anew_then() -> None:
    series = Series(EXPIRE)
    tell(series, "a", images_seen_total=5.0)
    series.lost("a", 0.0)
    series.expire(EXPIRE - 0.1)
    tell(series, "b", images_seen_total=2.0)
    series.expire(3 * EXPIRE)
    assert shown(series) == {COUNTER: 7.0}
    series.goodbye("b", 3 * EXPIRE)
    series.expire(4 * EXPIRE)
    assert shown(series) == {}
    tell(series, "c", images_seen_total=1.0)
    assert shown(series) == {COUNTER: 1.0}


def test_a_source_that_comes_again_does_not_count_twice() -> None:
    series = Series(EXPIRE)
    tell(series, "a", images_seen_total=5.0)
    series.lost("a", 0.0)
    tell(series, "a", images_seen_total=8.0)
    assert shown(series) == {COUNTER: 8.0}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 3.0])
def test_what_is_no_larger_total_adds_nothing(wrong: float) -> None:
    series = Series(EXPIRE)
    for value in (5.0, wrong, 6.0):
        tell(series, "a", images_seen_total=value)
    assert shown(series) == {COUNTER: 6.0}


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[int, str, int]]:
    """Draw what happens to three senders: each counts, is heard or not, is lost, says goodbye, comes again."""
    acts = st.sampled_from(["count", "heard", "heard", "lost", "goodbye"])
    return draw(st.lists(st.tuples(st.integers(0, 2), acts, st.integers(0, 20)), max_size=60))


@given(lives())
def test_totals_are_the_sums_of_what_was_heard_whatever_happens(happens: list[tuple[int, str, int]]) -> None:
    series, bounds = Series(1000.0), METRICS[STEPS].bounds
    counted, steps = [0.0] * 3, [Histogram(bounds) for _ in range(3)]
    heard, seen = [0.0] * 3, [Histogram(bounds) for _ in range(3)]
    gone_total, gone, losses = 0.0, Histogram(bounds), 0
    lives_of, connected, gauges = [0, 0, 0], [False] * 3, dict[int, float]()
    kept: float | None = None
    for now, (number, act, amount) in enumerate(happens):
        source = f"{number}-{lives_of[number]}"
        if act == "count":
            counted[number] += amount
            steps[number].observe(amount)
        elif act == "heard":
            if not connected[number]:
                series.connect(source, LABELS)
                connected[number] = True
            items = [(COUNTER, RUN, [counted[number]]), (STEPS, RUN, numbers(steps[number]))]
            series.update(source, [*items, (MEAN, RUN, [float(amount)])])
            heard[number] = counted[number]
            seen[number] = Histogram(bounds, [*steps[number].counts], steps[number].sum)
            gauges[number], kept = float(amount), None
        elif connected[number] and act == "lost":
            series.lost(source, float(now))
            losses += 1
            connected[number] = False
            gauges.pop(number)
        elif connected[number]:
            series.goodbye(source, float(now))
            connected[number] = False
            last = gauges.pop(number)
            kept = kept if gauges else last
            gone_total += heard[number]
            gone = Histogram(
                bounds,
                [a + b for a, b in zip(gone.counts, seen[number].counts, strict=True)],
                gone.sum + seen[number].sum,
            )
            counted[number], heard[number] = 0.0, 0.0
            steps[number], seen[number] = Histogram(bounds), Histogram(bounds)
            lives_of[number] += 1
        values = shown(series)
        assert values.get(COUNTER, 0.0) == gone_total + sum(heard)
        total = values.get(STEPS, Histogram(bounds))
        assert isinstance(total, Histogram) and total.sum == gone.sum + sum(part.sum for part in seen)
        assert total.counts == [
            sum(column) for column in zip(gone.counts, *(part.counts for part in seen), strict=True)
        ]
        assert values.get(MEAN) == (pytest.approx(sum(gauges.values()) / len(gauges)) if gauges else kept)
        assert series.sources == sum(connected)
        assert values.get(LOST, 0.0) == losses


# ---- who is lost


def test_the_lost_of_a_run_and_role_are_counted_from_the_first_of_them_until_after_the_last() -> None:
    series = Series(EXPIRE)
    for source in "abc":
        series.connect(source, LABELS)
    series.connect("of an older version")
    series.connect("nobody's", {"run": "first"})
    assert shown(series) == {LOST: 0.0}
    series.update("b", [(LOST, RUN, [99.0])])  # nobody tells that of himself
    for now, source in enumerate(("of an older version", "nobody's", "a")):
        series.lost(source, float(now))
    series.goodbye("b", 3.0)
    assert shown(series) == {LOST: 1.0}
    series.connect("a", LABELS)  # it had been counted, and a total never falls
    series.goodbye("a", 4.0)
    series.expire(9 * EXPIRE)
    assert shown(series) == {LOST: 1.0}
    series.lost("c", 9 * EXPIRE)
    series.expire(10 * EXPIRE - 0.1)
    assert shown(series) == {LOST: 2.0}
    series.expire(10 * EXPIRE)
    assert shown(series) == {}


def test_nothing_is_kept_of_runs_that_are_long_gone() -> None:
    series = Series(EXPIRE)
    before = len(pickle.dumps(series))
    for number in range(50):
        series.connect("a", {"run": str(number), "role": "generator"})
        series.update("a", [(name, (str(number), "generator"), [1.0]) for name in (COUNTER, MEAN, SUM)])
        (series.lost if number % 2 else series.goodbye)("a", 0.0)
    series.expire(EXPIRE)
    assert len(pickle.dumps(series)) == before


# ---- what is not taken


def test_series_beyond_the_limit_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    series = Series(EXPIRE, limit=3)
    series.connect("a")
    items = [("learning_rate", (f"run {number}", "generator"), [1.0]) for number in range(5)]
    for _ in range(2):
        series.update("a", items)
        series.update("a", [(STEPS, RUN, numbers(Histogram(METRICS[STEPS].bounds)))])  # more lines than are left
    ((_, rows),) = series.shown()
    assert len(rows) == 3 and series.dropped == 3
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    series.lost("a", 0.0)
    series.connect("b")
    series.update("b", items[3:])
    ((_, rows),) = series.shown()
    assert [labels[0] for labels, _ in rows] == ["run 3", "run 4"]


@pytest.mark.parametrize(
    ("name", "labels", "parts"),
    [
        ("of_a_later_version", RUN, [1.0]),
        ("learning_rate", ("first",), [1.0]),
        ("learning_rate", RUN, [1.0, 2.0]),
        ("step_seconds", RUN, [1.0, 2.0]),
        ("exporter_sources", (), [7.0]),
        ("learning_rate", ("\ud800", "generator"), [1.0]),
        ("learning_rate", ("x" * (LABEL_CHARACTERS + 1), "generator"), [1.0]),
    ],
)
def test_what_this_version_does_not_know_is_passed_over(name: str, labels: tuple[str, ...], parts: list[float]) -> None:
    series = Series(EXPIRE)
    series.connect("a")
    series.update("a", [(name, labels, parts), ("world_size", RUN, [2.0])])
    assert shown(series) == {LARGEST: 2.0}
    series.lost("a", 0.0)
    assert shown(series) == {}
