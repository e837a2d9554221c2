"""PromQL over our own metrics, written from the table: an unknown metric or label is an error here already.

A gauge of several processes or nodes is brought together as its `combine` says, a counter is a rate or a total.
"""

from hydramix_dist.telemetry import METRICS, PREFIX

TOGETHER = {"mean": "avg", "sum": "sum", "max": "max", "min": "min"}
TRAINING = ("run", "role")
ARM = ("run", "arm")


def series(name: str, **match: str) -> str:
    """Return the metric with a selector: the board's runs, and `match` (label: regular expression)."""
    labels = METRICS[_root(name)].labels
    if foreign := [label for label in match if label not in labels]:
        raise KeyError(f"{name} has no label {', '.join(foreign)}")
    chosen = ({"run": "$run"} if "run" in labels else {}) | match
    selector = ",".join(f'{label}{_is(pattern)}"{pattern}"' for label, pattern in chosen.items())
    return f"{PREFIX}{name}{{{selector}}}" if selector else f"{PREFIX}{name}"


def gauge(name: str, by: tuple[str, ...] = (), **match: str) -> str:
    """Return a gauge, brought together over instances and whatever else is not in `by`."""
    return f"{TOGETHER[METRICS[name].combine]}{_by(name, by)} ({series(name, **match)})"


def rate(name: str, by: tuple[str, ...] = (), **match: str) -> str:
    """Return how much a counter grows in a second."""
    return f"sum{_by(name, by)} (rate({series(name, **match)}[$__rate_interval]))"


def total(name: str, by: tuple[str, ...] = (), **match: str) -> str:
    """Return a counter's own value; for rare events, whose first one `rate` and `increase` may miss."""
    return f"sum{_by(name, by)} ({series(name, **match)})"


def highest(name: str, by: tuple[str, ...] = (), **match: str) -> str:
    """Return a counter's highest value in the board's time range, also of series that have gone since."""
    return f"sum{_by(name, by)} (max_over_time({series(name, **match)}[$__range]))"


def quantile(share: float, name: str, by: tuple[str, ...] = (), **match: str) -> str:
    """Return a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', (*by, 'le'), **match)})"


def oldest(name: str) -> str:
    """Return the most seconds since a timestamp, by the clock of the node that set it, of trainings under way.

    A timestamp stays for some minutes after its training has ended, and its age grows; hence the second half.
    """
    ages = f"{series('exporter_clock_timestamp_seconds')} - on (job, instance) group_right () {series(name)}"
    live = f"on (job, instance, run, role) ({series('trainings')} > 0)"
    return f"max (({ages}) and {live})"


def _is(pattern: str) -> str:
    return "=" if pattern.isidentifier() else "=~"


def _by(name: str, labels: tuple[str, ...]) -> str:
    known = ("instance", *METRICS[_root(name)].labels, *(("le",) if name.endswith("_bucket") else ()))
    if foreign := [label for label in labels if label not in known]:
        raise KeyError(f"{name} has no label {', '.join(foreign)}")
    return f" by ({', '.join(labels)})" if labels else ""


def _root(name: str) -> str:
    """Return the table's name of a histogram's series, else the name."""
    roots = [name.removesuffix(suffix) for suffix in ("_bucket", "_sum", "_count")]
    return next((root for root in roots if root != name and root in METRICS), name)
