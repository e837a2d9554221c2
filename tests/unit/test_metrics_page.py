"""The page about the metrics is the table's, and the table keeps the rules that Prometheus has for names."""

import re
from pathlib import Path

import pytest

from hydramix_dist.config.metrics import MetricsSettings
from hydramix_dist.telemetry import METRICS, PREFIX, SECTIONS, Metric
from hydramix_dist.telemetry.page import metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# Prometheus asks for base units: seconds, bytes, and ratios in place of percent.
NO_BASE_UNIT = {"milliseconds", "ms", "minutes", "hours", "kilobytes", "kib", "mib", "gib", "mb", "gb", "percent"}
# What a series must never be named by: as many series as trainings, or something that tells of a user's files.
NEVER = {"trial", "trial_id", "seed", "path", "folder", "url", "error", "message", "pid", "key"}
ALL = pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)


def test_the_committed_page_is_the_table_s() -> None:
    assert PAGE.read_text(encoding="utf-8") == metrics_page(), (
        "run: python -m hydramix_dist.telemetry.page > docs/metrics.md"
    )


def rows() -> list[list[str]]:
    lines = [line for line in metrics_page().splitlines() if line.startswith(f"| `{PREFIX}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_has_one_row_with_all_that_it_is() -> None:
    found = {row[0].strip("`").removeprefix(PREFIX): row for row in rows()}
    assert list(found) == [metric.name for section in SECTIONS.values() for metric in section]
    assert len(found) == len(rows())
    for name, metric in METRICS.items():
        _, kind, unit, labels, meaning = found[name]
        assert kind.split(",")[0] == metric.kind and (unit, meaning) == (metric.unit, metric.meaning)
        assert tuple(re.findall("`(.*?)`", labels)) == metric.labels
        assert all(value in labels for values in metric.known.values() for value in values)


def test_what_the_page_says_of_the_settings_is_so() -> None:
    settings, page = MetricsSettings(), metrics_page()
    assert f"`targets` (`{settings.targets}`)" in page and f"`expire` seconds ({settings.expire:g})" in page
    (block,) = re.findall("export HYDRAMIX_METRICS='{(.*)}'", page)
    assert {pair.split(":")[0].strip() for pair in block.split(",")} == set(MetricsSettings.model_fields)


@ALL
def test_names_follow_the_rules(metric: Metric) -> None:
    words = metric.name.split("_")
    assert METRICS[metric.name] is metric and re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert (words[-1] == "total") == (metric.kind == "counter")
    assert not NO_BASE_UNIT & set(words)
    assert words[-1] not in ("bucket", "count", "sum"), "those are lines of a histogram"
    without_total = metric.name.removesuffix("_total")
    for unit in ("seconds", "bytes", "ratio"):
        assert (metric.unit == unit) <= without_total.endswith(f"_{unit}")
    assert without_total.endswith("_timestamp_seconds") == (metric.unit == "Unix time")


@ALL
def test_labels_follow_the_rules(metric: Metric) -> None:
    assert len(set(metric.labels)) == len(metric.labels) and not NEVER & set(metric.labels)
    assert not {"le", "job", "instance"} & set(metric.labels), "Prometheus sets those itself"
    assert set(metric.known) <= set(metric.labels) and all(metric.known.values())
    if not metric.name.endswith("_info"):  # which is named by whose labels it holds
        assert not set(metric.labels) & set(metric.name.split("_")), "a label is no part of a name"


@ALL
def test_a_histogram_has_bounds_that_rise_and_nothing_else_has(metric: Metric) -> None:
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert metric.meaning and "\n" not in metric.meaning and "|" not in metric.meaning
