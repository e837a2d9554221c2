"""What an exporter shows: the values of many processes, brought together into one series each.

A source is one sender. Its counters and histograms are totals since it began; here they add up over sources by what
they have grown, so that a total never falls, however its sources end. Its gauges are worth something while it lives,
and after it has ended in order, until `expire` seconds have passed or another source knows better. A source that is
lost counts one for its run and role in a counter that all sources of that run and role carry.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hydramix_dist.telemetry.recorder import Value
from hydramix_dist.telemetry.table import METRICS, SECTIONS, Metric
from hydramix_dist.telemetry.wire import Key, clean, parts_of, value_of

_log = logging.getLogger("hydramix")

LIMIT = 5_000  # our choice: some fifty times what a sweep has, and a page of half a megabyte
_OWN = {metric.name for metric in SECTIONS["The exporter itself"]}
_LOST = METRICS["processes_lost_total"]

Shown = tuple[Metric, list[tuple[tuple[str, ...], Value]]]


@dataclass
class _Entry:
    """One series: the last numbers of each living source, and what is left of those that have ended."""

    metric: Metric
    live: dict[str, list[float]] = field(default_factory=dict)
    total: list[float] = field(default_factory=list)  # of a counter or histogram
    kept: float | None = None  # of a gauge without a living source
    since: float = 0.0  # when its last source ended


class Series:
    """All series of an exporter. Times are seconds of any clock that never goes back; not safe for several threads."""

    def __init__(self, expire: float, limit: int = LIMIT) -> None:
        """Begin empty; `limit` is the number of lines of the page, of which a histogram has several."""
        self._expire, self._limit = expire, limit
        self._entries: dict[Key, _Entry] = {}
        self._sources: dict[str, set[Key]] = {}  # those that live, and which series they carry
        self._lost: dict[str, tuple[float, dict[Key, list[float]]]] = {}  # when, and totals: it may come again
        self._refused: set[tuple[str, Key]] = set()
        self._of_run: Counter[Key] = Counter()  # series by metric and value of the first label, which is the run
        self._size = 0
        self.dropped = 0

    @property
    def sources(self) -> int:
        """How many sources live."""
        return len(self._sources)

    def connect(self, source: str, labels: Mapping[str, str] | None = None) -> None:
        """Begin a source, or go on with one that was lost: what it had counted does not count again.

        With a run and a role among its labels it counts as a lost process when it is lost. That cannot be taken back: a
        total never falls. So a process whose connection breaks while both ends live counts as well, which a socket
        within one machine does not do by itself.
        """
        own = _lost_key(labels or {})
        carried = self._sources.setdefault(source, set())
        _, totals = self._lost.pop(source, (0.0, {}))
        for key, parts in totals.items():
            if key in self._entries:
                self._entries[key].live[source] = parts
                carried.add(key)
        if own is not None:
            entry = self._entries.get(own) or self._new(source, own, 1)
            if entry is not None:
                entry.live[source] = [0.0]
                carried.add(own)

    def update(self, source: str, items: Iterable[tuple[str, Sequence[str], Sequence[float]]]) -> None:
        """Take numbers of a source that has connected; what this version does not know is passed over."""
        carried = self._sources[source]
        for name, labels, told in items:
            key, parts = (name, tuple(labels)), [*map(float, told)]
            if name in _OWN:
                continue
            entry = self._entries.get(key) or self._new(source, key, len(parts))
            if entry is None or len(parts) != parts_of(entry.metric):
                continue
            carried.add(key)
            if entry.metric.kind == "gauge":
                entry.live[source], entry.kept = parts, None
            else:
                _grow(entry, source, parts)

    def goodbye(self, source: str, now: float) -> None:
        """End a source in order: its last gauges stay, apart from sums."""
        for key in self._sources.pop(source):
            entry = self._entries[key]
            (last, *_) = entry.live.pop(source)
            entry.since = now
            if entry.metric.kind == "gauge" and not entry.live:
                if entry.metric.combine == "sum":
                    self._remove(key)
                else:
                    entry.kept = last
        self._forget(source)

    def lost(self, source: str, now: float) -> None:
        """End a source that was killed: nothing of its gauges stays, all of its counters does."""
        totals: dict[Key, list[float]] = {}
        for key in self._sources.pop(source):
            entry = self._entries[key]
            last = entry.live.pop(source)
            entry.since = now
            if entry.metric is _LOST:
                entry.total[0] += 1.0
            if entry.metric.kind != "gauge":
                totals[key] = last
            elif not entry.live:
                self._remove(key)
        self._lost[source] = now, totals
        self._forget(source)

    def expire(self, now: float) -> None:
        """Remove the series that no source has carried for `expire` seconds."""
        for key, entry in [*self._entries.items()]:
            if not entry.live and now - entry.since >= self._expire:
                self._remove(key)
        self._lost = {source: old for source, old in self._lost.items() if now - old[0] < self._expire}

    def shown(self) -> list[Shown]:
        """Return each metric that has series, in the table's order, with their labels' values and values, sorted."""
        found: dict[str, list[tuple[tuple[str, ...], Value]]] = {}
        for (name, labels), entry in sorted(self._entries.items()):
            found.setdefault(name, []).append((labels, _combined(entry)))
        return [(metric, found[name]) for name, metric in METRICS.items() if name in found]

    def _new(self, source: str, key: Key, parts: int) -> _Entry | None:
        """Return a new series, None where this version knows none such, or there are too many."""
        name, labels = key
        metric = METRICS.get(name)
        if metric is None or (len(labels), parts) != (len(metric.labels), parts_of(metric)):
            return None
        if tuple(map(clean, labels)) != labels:
            return None
        of_run = self._of_run[name, labels[:1]]
        if self._size + _lines(metric) > self._limit or (metric.most is not None and of_run >= metric.most):
            if not self.dropped:
                there = f"{self._size}, {of_run} of them {name} of one run"
                _log.warning("there are %s series: further ones of these are not taken", there)
            if (source, key) not in self._refused:
                self._refused.add((source, key))
                self.dropped += 1
            return None
        self._size += _lines(metric)
        self._of_run[name, labels[:1]] += 1
        entry = self._entries[key] = _Entry(metric, total=[0.0] * parts_of(metric))
        return entry

    def _remove(self, key: Key) -> None:
        self._size -= _lines(self._entries.pop(key).metric)
        name, labels = key
        self._of_run[name, labels[:1]] -= 1
        if not self._of_run[name, labels[:1]]:  # runs come and go for as long as a service lives
            del self._of_run[name, labels[:1]]

    def _forget(self, source: str) -> None:
        self._refused = {refused for refused in self._refused if refused[0] != source}


def _lost_key(labels: Mapping[str, str]) -> Key | None:
    """Return the series in which a source with such labels counts when it is lost; None where they do not say."""
    if not all(name in labels for name in _LOST.labels):
        return None
    return _LOST.name, tuple(str(labels[name]) for name in _LOST.labels)


def _grow(entry: _Entry, source: str, parts: Sequence[float]) -> None:
    """Add what a source's numbers have grown by; a number that has fallen, or is none, adds nothing."""
    before = entry.live.setdefault(source, [0.0] * len(parts))
    for number, part in enumerate(parts):
        if before[number] < part < math.inf:
            entry.total[number] += part - before[number]
            before[number] = part


def _combined(entry: _Entry) -> Value:
    """Return the one value that a series shows; of numbers one of which is none, none."""
    if entry.metric.kind != "gauge":
        return value_of(entry.metric, entry.total)
    if not entry.live:
        return math.nan if entry.kept is None else entry.kept
    values = [value for (value,) in entry.live.values()]
    if any(map(math.isnan, values)):
        return math.nan
    match entry.metric.combine:
        case "sum":
            return math.fsum(values)
        case "max":
            return max(values)
        case "min":
            return min(values)
        case _:
            return math.fsum(values) / len(values)


def _lines(metric: Metric) -> int:
    """Return the lines of one series of a metric: of a histogram its buckets, sum and count."""
    return len(metric.bounds) + 3 if metric.kind == "histogram" else 1
