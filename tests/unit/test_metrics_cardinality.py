"""A sweep of a thousand trainings has hardly more series than a small one, whatever its shape."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sweep_books import design_of, result_of, settings_of, tiny_images

from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.metrics import SweepMetrics
from hydramix_dist.telemetry import METRICS, SECTIONS, Histogram, Recorder, Value
from hydramix_dist.telemetry.series import Series
from hydramix_dist.telemetry.wire import numbers

MOST = 2_000  # lines of the page of a sweep of a thousand trainings


class Told:
    """A sink that hands a process's records to the exporter's series at once."""

    def __init__(self, series: Series, source: str) -> None:
        self.series, self.source = series, source
        series.connect(source)

    def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
        items = [
            (name, [labels[label] for label in METRICS[name].labels], numbers(value)) for name, value in values.items()
        ]
        self.series.update(self.source, items)


def lines(series: Series) -> int:
    """Return how many lines the page has, comments aside."""
    each = {"histogram": 3, "counter": 1, "gauge": 1}
    return sum((each[metric.kind] + len(metric.bounds)) * len(rows) for metric, rows in series.shown())


def everything(role: str) -> Iterator[tuple[dict[str, Value], dict[str, str]]]:
    """Yield all that a training of a role may ever tell, with the labels beside its own."""
    for section in ("Every training", role.capitalize(), "Checkpoints", "Data", "Workers and disk"):
        for metric in SECTIONS[section]:
            value = Histogram(metric.bounds) if metric.bounds else 1.0
            choices = [metric.known.get(label, ("some",)) for label in metric.labels]
            for labels in itertools.product(*choices):
                own = dict(zip(metric.labels, labels, strict=True))
                yield {metric.name: value}, {k: v for k, v in own.items() if k not in ("run", "role", "arm")}


@pytest.mark.parametrize(("arms", "seeds"), [(1000, 1), (100, 10), (4, 250)])
def test_a_thousand_trainings_have_less_than_two_thousand_series(arms: int, seeds: int, tmp_path: Path) -> None:
    settings = settings_of(
        arms={f"arm-{arm}": {"classifier": {"dropout": arm / 2000}} for arm in range(arms)}, seeds=list(range(seeds))
    )
    series, events = Series(expire=300), []
    book = Book(design_of(settings, tiny=tiny_images(tmp_path)), events.append)
    sweep = SweepMetrics(book, Recorder([Told(series, "driver")], run="sweep", role="driver"), gpus=1.0)
    sweep.tell(last=True)
    told = {role: list(everything(role)) for role in ("generator", "classifier")}
    done = 0
    while (trial := book.next()) is not None:
        book.begun(trial.key)
        for role in ("generator", "classifier"):  # each training with a generator of its own: more than there can be
            sink = Told(series, f"{trial.key}-{role}")
            recorder = Recorder([sink], run="sweep", role=role, arm=trial.arm or "")
            for values, labels in told[role]:
                recorder.record(0, values, **labels)
            series.goodbye(sink.source, now=0.0)
        book.done(trial.key, result_of(trial))
        done += 1
    sweep.tell(last=True)
    assert done == 1000 and lines(series) < MOST


def test_the_sweep_s_own_metrics_are_those_of_its_book(tmp_path: Path) -> None:
    book = Book(design_of(settings_of(), tiny=tiny_images(tmp_path)), lambda event: None)
    series = Series(expire=300)
    sweep = SweepMetrics(book, Recorder([Told(series, "driver")], run="s", role="driver"), gpus=0.5)

    def shown(name: str) -> dict[tuple[str, ...], Value]:
        sweep.tell(last=True)
        return next((dict(rows) for metric, rows in series.shown() if metric.name == name), {})

    states = {("s", state): 0.0 for state in ("running", "done", "early", "failed")}
    assert shown("sweep_trials") == states | {("s", "pending"): 4.0}  # three arms and a generator
    first, second = book.next(), book.next()
    assert first is not None and second is not None
    book.begun(first.key)
    book.failed(first.key, "no reason", gpu_seconds=3.0)
    book.begun(second.key)
    book.done(second.key, result_of(second) | {"gpu_seconds": 2.0})
    assert shown("sweep_failures_total") == {("s",): 1.0}
    while (trial := book.next()) is not None:
        book.begun(trial.key)
        book.done(trial.key, result_of(trial))
    assert shown("sweep_trials")["s", "done"] == 4.0
    assert shown("sweep_generators_reused_total") == {("s",): 1.0}  # two arms, one generator
    assert {labels[2:] for labels in shown("sweep_accuracy_ratio")} == {
        (arm, "5") for arm in ("baseline", "hydramix", "both")
    }
    assert shown("sweep_queue_age_seconds")["s",] == pytest.approx(0.0, abs=1.0)


def test_a_sweep_that_goes_on_counts_from_its_own_beginning(tmp_path: Path) -> None:
    events: list[dict[str, object]] = []
    design = design_of(settings_of(), tiny=tiny_images(tmp_path))
    before = Book(design, events.append)
    trial = before.next()
    assert trial is not None
    before.begun(trial.key)
    before.failed(trial.key, "no reason")
    book = Book(design, lambda event: None)
    book.replay(events)
    series = Series(expire=300)
    SweepMetrics(book, Recorder([Told(series, "driver")], run="s", role="driver"), gpus=0.0).tell()
    (failures,) = (rows for metric, rows in series.shown() if metric.name == "sweep_failures_total")
    assert failures == [(("s",), 0.0)]


def test_the_queue_grows_old_while_nothing_begins_and_gpu_time_while_something_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    book = Book(design_of(settings_of(), tiny=tiny_images(tmp_path)), lambda event: None)
    kept: dict[str, list[Value]] = {}

    class Kept:
        def write(self, values: Mapping[str, Value], labels: Mapping[str, str], images: int) -> None:
            for name, value in values.items():
                kept.setdefault(name, []).append(value)

    sweep = SweepMetrics(book, Recorder([Kept()], run="s", role="driver"), gpus=0.5)
    trial = book.next()
    assert trial is not None
    book.begun(trial.key)
    for _ in range(3):
        now[0] += 60
        sweep.tell()
    assert kept["sweep_queue_age_seconds"] == [0.0, 60.0, 120.0]
    assert kept["sweep_gpu_seconds_total"] == [30.0, 60.0, 90.0]  # half a GPU
    book.done(trial.key, result_of(trial))
    now[0] += 60
    sweep.tell()
    assert kept["sweep_gpu_seconds_total"][-1] == 90.0  # nothing has run
