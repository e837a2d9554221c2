"""The page about the exported metrics, written from the table so that it cannot drift from the code.

`python -m hydramix_dist.telemetry.page > docs/metrics.md` renews the page.
"""

from collections.abc import Mapping

from hydramix_dist.telemetry.series import LIMIT
from hydramix_dist.telemetry.table import MOST_ARMS, PREFIX, SECTIONS, Metric
from hydramix_dist.telemetry.wire import LABEL_CHARACTERS

_HEAD = f"""# The metrics

Written from the table by `python -m hydramix_dist.telemetry.page > docs/metrics.md`: to change this page, edit
`table.py` or `page.py` in `hydramix_dist/telemetry/` and run that command.

## How they are exported

```
$ hydramix pilot photos --metrics-port 9464
metrics at http://127.0.0.1:9464/metrics
```

`train`, `pilot` and `sweep` take `--metrics-port`. For every process of a machine alike, workers on a cluster
included, `HYDRAMIX_METRICS` holds a YAML file's path or the settings themselves:

```
export HYDRAMIX_METRICS='{{port: 9464, host: 0.0.0.0, targets: /var/lib/hydramix-metrics, expire: 300}}'
```

A node has one endpoint, an exporter that the first process starts and all trainings of the user send to; on a port in
use it takes the next free one. It ends when nobody has sent for `expire` seconds; `hydramix exporter` runs one that
stays. In the folder `targets` (`/tmp/hydramix-metrics`) each exporter has a file HOST-PORT.json that Prometheus reads:

```yaml
scrape_configs:
  - job_name: hydramix
    file_sd_configs:
      - files: [/tmp/hydramix-metrics/*.json]
```

No step waits for the exporter: a command gives it 10 s at its beginning, a training 2 s at its end, and both go on
without one, with one warning. Without a port nothing is started.

## What they say

**Together.** Processes of a node that carry the same labels make one series. Counters and histograms add up over all of
them, also over those that have ended. A gauge is their mean, sum, largest or smallest value, as the type says.

**How long.** When a process ends in order, its gauges keep their last value for `expire` seconds (300), or until
another process tells better; those that are sums count the living only. When a process is killed, all its gauges go at
once. Counters and histograms stay for `expire` seconds after the last process that carried them.

**Beginnings.** Counters and histograms whose labels are known begin at 0 with the training. One that grows at once may
be seen first with what it has grown to, where the training began between two scrapes.

**Ages.** Subtract a time from `{PREFIX}exporter_clock_timestamp_seconds` of the same `instance`, not from `time()`:
both are then of one clock.

**Labels.** `run` is the name of the pilot, the sweep or the training's folder; `role` is `generator`, `classifier` or
`driver`, the process that starts trainings. Never a label: a trial, a seed, a path, the text of an error; single
results are in `results.json`. `arm` is one of few gauges, of at most {MOST_ARMS} arms of a run, so that a sweep of a
thousand trainings has less than 2,000 lines. Labels are cut at {LABEL_CHARACTERS} characters. An exporter shows
{LIMIT:,} lines at most; `{PREFIX}exporter_dropped_series_total` counts what it left out.
"""
_COMBINED: Mapping[str, str] = {"mean": "mean", "sum": "sum", "max": "largest", "min": "smallest"}


def metrics_page() -> str:
    """Return the Markdown page: how metrics are exported, and a table for each section of the table of metrics."""
    parts = [_HEAD]
    for section, metrics in SECTIONS.items():
        parts.append(f"\n## {section}\n\n| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n")
        parts += [_row(metric) for metric in metrics]
    return "".join(parts)


def _row(metric: Metric) -> str:
    return f"| `{PREFIX}{metric.name}` | {_type(metric)} | {metric.unit} | {_labels(metric)} | {metric.meaning} |\n"


def _type(metric: Metric) -> str:
    """Return the type, with how a gauge is combined or how far a histogram's buckets reach."""
    if metric.kind == "gauge":
        return f"gauge, {_COMBINED[metric.combine]}"
    if metric.kind == "histogram":
        return f"histogram, bounds from {metric.bounds[0]:g} to {metric.bounds[-1]:g}"
    return metric.kind


def _labels(metric: Metric) -> str:
    """Return the labels, with all their values where those are known."""
    found = []
    for label in metric.labels:
        values = ", ".join(metric.known.get(label, ()))
        found.append(f"`{label}`" + f" ({values})" * bool(values))
    return ", ".join(found)


if __name__ == "__main__":
    print(metrics_page(), end="")
