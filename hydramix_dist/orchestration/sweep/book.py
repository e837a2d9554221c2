"""Where each training of a sweep stands, and which is to begin next: rebuilt from the sweep's events, and from no more.

Every change is an event first, written and then applied, so that a sweep that goes on is where the last one was.
"""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hydramix_dist.config.sweep import Scalar
from hydramix_dist.orchestration.sweep.design import Cell, Design, Trial, priority_of
from hydramix_dist.orchestration.sweep.ledger import Event
from hydramix_dist.orchestration.sweep.search import Tried, suggest

State = Literal["pending", "running", "done", "early", "failed"]
_SETTLED = ("done", "early", "failed")
BUSY_SECONDS = 5.0  # before a training that another process carries out is asked for again


@dataclass
class Entry:
    """One training and where it stands."""

    trial: Trial
    order: int
    state: State = "pending"
    failures: int = 0
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    not_before: float = 0.0


@dataclass
class _Race:
    """A search: what was asked for so far, and what was chosen."""

    asked: list[dict[str, Scalar]] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)  # of each candidate's classifiers
    open: int = 0  # of these, how many are still to come to an end
    chosen: dict[str, Scalar] | None = None
    over: bool = False


class Book:
    """All trainings that are known so far. `record` writes events; those read from a record go through `replay`."""

    def __init__(self, design: Design, record: Callable[[Event], None]) -> None:
        self._design, self._record = design, record
        self._limits, self._search = design.settings.limits, design.settings.search
        self.entries: dict[str, Entry] = {}
        self.counts: Counter[State] = Counter()
        self._dependents: dict[str, list[str]] = {}
        self._ready: list[tuple[int, int, str]] = []  # heap of (-priority, order, key)
        self._deferred: set[str] = set()
        self._only: set[str] | None = None  # None: all are to be begun
        self._suspects: list[str] = []  # what may need a training that has failed
        self.validated_before: list[tuple[str, int, float]] = []  # (key, images, validation accuracy), in order
        self._races = {name: _Race() for name in design.groups}
        self._cells: dict[str | None, list[Cell]] = {}
        self._gpu_seconds = 0.0
        self.attempts_failed = 0  # under earlier drivers too
        for cell in design.cells:
            self._cells.setdefault(cell.group, []).append(cell)
        for cell in self._cells.get(None, []):
            self._add(design.final(cell, {}))

    # ---- going on

    def replay(self, events: Iterable[Event]) -> None:
        """Take the events of an earlier driver; what was running then is pending again."""
        for event in events:
            self._apply(event)
            if event["event"] == "validated" and event["key"] in self.entries:
                self.validated_before.append((event["key"], event["images"], event["value"]))
        for entry in self.entries.values():
            if entry.state == "running":
                self._set(entry, "pending")
                self._push_if_ready(entry.trial.key)
        self._settle()

    def only_failed(self) -> None:
        """Give every training that has failed for good another chance, and begin nothing else."""
        keys = [key for key, entry in self.entries.items() if entry.state == "failed"]
        self._only = set(keys)
        self._ready.clear()
        if keys:
            self._happen({"event": "again", "keys": keys})

    # ---- what is next

    def next(self) -> Trial | None:
        """Return a training to begin now, which is then running; None where there is none, for now or for good."""
        if self.closed:
            return None
        self._wake()
        while self._search_comes_first() or self._ready or self._ask():
            while self._ready and not self._search_comes_first():
                entry = self.entries[heapq.heappop(self._ready)[2]]
                if entry.state == "pending":  # not begun since, from a second place in the heap
                    self._set(entry, "running")
                    return entry.trial
        return None

    def _search_comes_first(self) -> bool:
        """Ask for a candidate where the arm of a search has a higher priority than all that is ready."""
        waiting = max((-key[0] for key in self._open_races()), default=None)
        return bool(self._ready) and waiting is not None and waiting > -self._ready[0][0] and self._ask()

    @property
    def waiting(self) -> bool:
        """Return whether a training could begin now, if there were room for it."""
        return not self.closed and any(self.entries[key].state == "pending" for _, _, key in self._ready)

    @property
    def unfinished(self) -> bool:
        """Return whether there is something left to begin before it is over."""
        if self._only is not None:
            return any(self.entries[key].state == "pending" for key in self._only)
        return bool(self.counts["pending"] or any(not race.over for race in self._races.values()))

    @property
    def closed(self) -> bool:
        """Return whether a limit lets no further training begin."""
        limits = self._limits
        spent = self.counts["done"] + self.counts["early"] + self.counts["running"]
        return (limits.trials is not None and spent >= limits.trials) or (
            limits.gpu_hours is not None and self._gpu_seconds >= limits.gpu_hours * 3600
        )

    @property
    def over(self) -> bool:
        """Return whether nothing is running and nothing is to begin any more."""
        if self.counts["running"]:
            return False
        return self.closed or not self.unfinished

    @property
    def total(self) -> int:
        """Return how many trainings there are, with those of searches that are still to be drawn or chosen."""
        total = len(self.entries)
        for name, race in self._races.items():
            if self._search is not None and not race.over:
                total += (self._search.trials - len(race.asked)) * len(self._search.seeds)
                total += len(self._cells.get(name, []))
        return total

    # ---- what happened

    def begun(self, key: str) -> None:
        """Note that a training has begun."""
        self._happen({"event": "begun", **self.entries[key].trial.facts})

    def validated(self, key: str, images: int, value: float) -> None:
        """Note a candidate's validation accuracy on its way."""
        self._happen({"event": "validated", "key": key, "images": images, "value": value})

    def done(self, key: str, result: Mapping[str, Any]) -> None:
        """Note a finished training, with what is to be known of it."""
        self._happen({"event": "done", "key": key, **result})
        self._settle()

    def early(self, key: str, images: int, value: float, gpu_seconds: float = 0.0) -> None:
        """Note a candidate that was stopped early."""
        self._happen({"event": "early", "key": key, "images": images, "value": value, "gpu_seconds": gpu_seconds})
        self._settle()

    def failed(self, key: str, error: str, gpu_seconds: float = 0.0) -> None:
        """Note a training that failed: it is begun again, or, after the attempts it has, fails for good."""
        entry = self.entries[key]
        final = entry.failures + 1 >= self._limits.attempts
        event = {"event": "failed", "error": error, "final": final, "gpu_seconds": gpu_seconds}
        self._happen(event | entry.trial.facts)
        self._settle()

    def busy(self, key: str) -> None:
        """Note that another process carries a training out: it is asked for again in a moment."""
        self._happen({"event": "busy", "key": key})
        self.entries[key].not_before = time.monotonic() + BUSY_SECONDS
        self._deferred.add(key)

    def put_back(self, key: str) -> None:
        """Note that a training was not begun, or stopped on request."""
        self._set(self.entries[key], "pending")
        self._push(self.entries[key])

    # ---- inside

    def _happen(self, event: Event) -> None:
        self._record(event)
        self._apply(event)

    def _apply(self, event: Event) -> None:
        kind = event["event"]
        if kind in ("asked", "chosen", "unchosen"):
            self._apply_search(kind, event)
        elif kind == "again":
            for key in event["keys"]:
                if key in self.entries:
                    self.entries[key].failures = 0
                    self._set(self.entries[key], "pending")
            for key in event["keys"]:
                self._push_if_ready(key)
            for race in self._races.values():
                race.over = race.over and race.chosen is not None
        elif event.get("key") in self.entries:
            self._apply_training(kind, self.entries[event["key"]], event)

    def _apply_training(self, kind: str, entry: Entry, event: Event) -> None:
        self._gpu_seconds += event.get("gpu_seconds", 0.0)
        if kind in ("begun", "busy"):
            self._set(entry, "running" if kind == "begun" else "pending")
        elif kind == "done":
            entry.result = {name: value for name, value in event.items() if name not in ("event", "key", "time")}
            self._set(entry, "done")
            for key in self._dependents.get(entry.trial.key, ()):
                self._push_if_ready(key)
        elif kind == "early":
            entry.result = {"value": event["value"]}
            self._set(entry, "early")
        elif kind == "failed":
            entry.failures += 1
            self.attempts_failed += 1
            entry.error = event["error"]
            self._set(entry, "failed" if event["final"] else "pending")
            self._push_if_ready(entry.trial.key)
            if event["final"]:
                self._suspects += self._dependents.get(entry.trial.key, ())

    def _apply_search(self, kind: str, event: Event) -> None:
        race, group = self._races.get(event["group"]), self._design.groups.get(event["group"])
        if race is None or group is None:
            return
        if kind == "asked":
            trials = self._design.candidate(group, len(race.asked), event["values"])
            race.asked.append(event["values"])
            race.keys.append([trial.key for trial in trials if trial.kind == "candidate"])
            self._add(trials)
            return
        race.over, race.chosen = True, event.get("values")
        for cell in self._cells.get(group.name, []) if race.chosen is not None else ():
            trials = self._design.final(cell, race.chosen or {})
            if self._only is not None:  # what a search that failed has kept from being begun
                self._only |= {trial.key for trial in trials}
            self._add(trials)

    def _add(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            if trial.key not in self.entries:
                self.entries[trial.key] = Entry(trial, len(self.entries))
                self.counts["pending"] += 1
                if trial.group is not None:
                    self._races[trial.group].open += 1
                if trial.needs is not None:
                    self._dependents.setdefault(trial.needs, []).append(trial.key)
                    self._suspects.append(trial.key)
                self._push_if_ready(trial.key)

    def _set(self, entry: Entry, state: State) -> None:
        self.counts[entry.state] -= 1
        self.counts[state] += 1
        race = self._races.get(entry.trial.group or "")
        if race is not None:
            race.open += (state not in _SETTLED) - (entry.state not in _SETTLED)
        entry.state = state

    def _push_if_ready(self, key: str) -> None:
        entry = self.entries.get(key)
        if entry is None or entry.state != "pending":
            return
        need = self.entries.get(entry.trial.needs or "")
        if need is None or need.state == "done":
            self._push(entry)

    def _push(self, entry: Entry) -> None:
        if self._only is not None and entry.trial.key not in self._only:
            return
        heapq.heappush(self._ready, (-entry.trial.priority, entry.order, entry.trial.key))

    def _wake(self) -> None:
        now = time.monotonic()
        for key in [key for key in self._deferred if self.entries[key].not_before <= now]:
            self._deferred.discard(key)
            self._push(self.entries[key])

    # ---- searches

    def _ask(self) -> bool:
        """Ask for one more candidate, of the search with the fewest under way; return whether there was one."""
        search, open_races = self._search, self._open_races()
        if search is None or not open_races:
            return False
        name = min(open_races)[-1]
        race = self._races[name]
        # Scores are summed up for the one method that learns from them.
        tried = self._tried(race) if search.method == "optuna" else [(values, None) for values in race.asked]
        values = suggest(search, self._design.groups[name].keys, name, tried)
        self._happen({"event": "asked", "group": name, "index": len(race.asked), "values": values})
        self._settle()
        return True

    def _open_races(self) -> list[tuple[int, int, int, str]]:
        """Return the searches that have candidates to ask for, the one to ask first being the least."""
        search = self._search
        if search is None or self._only is not None:
            return []
        return [
            (-priority_of(self._design.settings, self._design.groups[name].arm), race.open, len(race.asked), name)
            for name, race in self._races.items()
            if not race.over
            and len(race.asked) < search.trials
            and not (search.method == "optuna" and self._waits(race))
        ]

    def _waits(self, race: _Race) -> bool:
        """Return whether a candidate is still to be begun: to ask for more would be without its score."""
        return any(self.entries[key].state == "pending" for keys in race.keys for key in keys)

    def _tried(self, race: _Race) -> list[Tried]:
        return [(values, self._score(keys)) for values, keys in zip(race.asked, race.keys, strict=True)]

    def _score(self, keys: list[str]) -> float | None:
        """Return a candidate's mean validation accuracy; None while it is under way, NaN where it came to no end."""
        entries = [self.entries[key] for key in keys]
        if any(entry.state in ("early", "failed") for entry in entries):
            return math.nan
        if any(entry.state != "done" for entry in entries):
            return None
        return sum(float(entry.result["value"]) for entry in entries) / len(entries)

    def _settle(self) -> None:
        """Fail what needs a failed training, and choose where all candidates have come to an end."""
        while self._suspects:
            entry = self.entries[self._suspects.pop()]
            need = self.entries[entry.trial.needs or ""]
            if entry.state == "pending" and need.state == "failed":
                error = f"not begun, for the training it needs failed: {need.error}"
                self._happen({"event": "failed", "error": error, "final": True, **entry.trial.facts})
        for name, race in self._races.items():
            full = self._search is not None and len(race.asked) >= self._search.trials
            if full and not race.over and not race.open:
                self._choose(name, race)

    def _choose(self, name: str, race: _Race) -> None:
        """Choose the candidate with the best score, of equal ones the first; it must have come to its end."""
        found = enumerate(self._tried(race))
        scores = [(index, score) for index, (_, score) in found if score is not None and not math.isnan(score)]
        if not scores:
            errors = [self.entries[key].error for keys in race.keys for key in keys if self.entries[key].error]
            error = f"no setting could be chosen: none of {len(race.asked)} candidates came to its end"
            self._happen({"event": "unchosen", "group": name, "error": f"{error} ({errors[-1]})" if errors else error})
            return
        best, score = max(scores, key=lambda found: (found[1], -found[0]))
        facts = {"group": name, "index": best, "values": race.asked[best], "score": score, "candidates": len(scores)}
        self._happen({"event": "chosen", **facts})
        self._settle()
