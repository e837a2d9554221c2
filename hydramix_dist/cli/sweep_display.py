"""What a person sees while a sweep runs: a table that stays, or plain lines where there is no terminal."""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hydramix_dist.cli.console import LiveDisplay, spoken
from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.orchestration.sweep.watch import Watch

LOOK_SECONDS = 2.0  # between two drawings on a terminal
LINE_SECONDS = 30.0  # between two lines where there is none
_SHOWN = 8  # running trainings on the terminal


class SweepLive(LiveDisplay):
    """The bars of an import first, then the table of the sweep."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._looked = 0.0
        self._began = time.monotonic()
        self._settled = -1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        super().__exit__(kind, error, at)

    def look(self, book: Book, watch: Watch) -> None:
        """Show where the sweep stands, now and then."""
        now = time.monotonic()
        if now - self._looked < (LOOK_SECONDS if self._console.is_terminal else LINE_SECONDS):
            return
        first, self._looked = self._looked == 0.0, now
        if first:
            self._began = now
        summary = self._summary(book, watch)
        if not self._console.is_terminal:
            self.say(summary)
            return
        if self._live is None or first:
            self._bars.stop()
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(self._table(book, watch, summary), refresh=True)

    def _summary(self, book: Book, watch: Watch) -> str:
        counts = book.counts
        settled = counts["done"] + counts["early"] + counts["failed"]
        if self._settled < 0:
            self._settled = settled
        hours = (time.monotonic() - self._began) / 3600
        left = _seconds_left(book, watch)
        parts = [f"{settled} of {book.total} trainings", f"{counts['running']} running"]
        parts += [f"{counts['early']} stopped early"] if counts["early"] else []
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        parts += [f"{(settled - self._settled) / hours:.0f} an hour"] if settled > self._settled else []
        parts += [f"about {spoken(left)} left"] if left else []
        parts += [watch.reserved] if watch.reserved else []
        return ", ".join(parts)

    def _table(self, book: Book, watch: Watch, summary: str) -> RenderableType:
        running = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        for key in list(watch.running)[:_SHOWN]:
            images, total = watch.running[key]
            done = f"{100 * images / total:3.0f} %" if total else "begins"
            running.add_row(done, Text(book.entries[key].trial.task.name))
        if len(watch.running) > _SHOWN:
            running.add_row("", f"and {len(watch.running) - _SHOWN} more")
        rows = ((entry.trial.facts, entry.state, entry.result) for entry in book.entries.values())
        return Group(Text(summary), best_table(rows), running)


def _seconds_left(book: Book, watch: Watch) -> float | None:
    """Return the seconds left by what finished trainings of each kind took, with as many at a time as run now."""
    took: dict[str, list[float]] = {}
    for entry in book.entries.values():
        if entry.state == "done":
            took.setdefault(entry.trial.kind, []).append(entry.result["wall_seconds"])
    if not took or not watch.running:
        return None
    means = {kind: sum(values) / len(values) for kind, values in took.items()}
    overall = sum(map(sum, took.values())) / sum(map(len, took.values()))
    known = len(book.entries)
    work = (book.total - known) * overall
    for key, entry in book.entries.items():
        if entry.state in ("pending", "running"):
            images, total = watch.running.get(key, (0, 0))
            work += means.get(entry.trial.kind, overall) * (1 - images / total if total else 1.0)
    return work / len(watch.running)


def best_table(trials: Iterable[tuple[Mapping[str, Any], str, Mapping[str, Any]]]) -> Table:
    """Return mean accuracy and number of seeds by data set and arm (rows) and N (columns), of what is done so far."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    shots_values: set[int] = set()
    for facts, state, result in trials:
        if facts["kind"] == "classifier":
            row = found.setdefault((facts["data"], facts["arm"]), {})
            shots_values.add(facts["shots"])
            if state == "done":
                row.setdefault(facts["shots"], []).append(result["accuracy"])
    columns = sorted(shots_values)
    several = len({data for data, _ in found}) > 1
    best = {n: max((sum(r[n]) / len(r[n]) for r in found.values() if n in r), default=None) for n in columns}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("arm")
    for shots in columns:
        table.add_column(f"N={shots}", justify="right")
    for (data, arm), row in found.items():
        cells = []
        for shots in columns:
            values = row.get(shots)
            mean = sum(values) / len(values) if values else None
            text = "-" if values is None or mean is None else f"{100 * mean:.1f} % ({len(values)})"
            cells.append(Text(text, style="bold" if mean is not None and mean == best[shots] and not several else ""))
        table.add_row(Text(f"{data}: {arm}" if several else arm), *cells)
    return table
