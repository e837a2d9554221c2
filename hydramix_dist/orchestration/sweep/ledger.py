"""What happened in a sweep, one JSON object a line in `trials.jsonl`: all that is needed to go on, and to tell results.

The events: `session` and `ended` of a driver, `data` of each image set, `begun`, `busy`, `validated`, `done`, `early`,
`failed` of a training, `asked`, `chosen`, `unchosen` of a search, `again` where failed trainings get another chance.
"""

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from hydramix_dist.store import Store
from hydramix_dist.store.journal import Journal

LEDGER_FILE = "trials.jsonl"
_DECISIONS = ("asked", "chosen", "unchosen")
Event = dict[str, Any]


class Ledger:
    """Appends events, to be used as a context manager by the one process that holds the sweep's folder."""

    def __init__(self, store: Store) -> None:
        self._journal = Journal(store, LEDGER_FILE)
        self._torn = not (store.get(LEDGER_FILE) or b"\n").endswith(b"\n")

    def __enter__(self) -> Self:
        self._journal.__enter__()
        if self._torn:  # by a process killed in mid-line: what follows begins a line of its own
            self._journal.write(b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.__exit__(kind, error, at)

    def write(self, event: Event) -> None:
        """Append one event, with the time (Unix seconds). Raises UserError where a disk refuses it.

        What a search has decided is in the store when this returns: trainings' folders follow from it.
        """
        self._journal.write((json.dumps({"time": round(time.time(), 3), **event}) + "\n").encode())
        if event["event"] in _DECISIONS:
            self._journal.flush()


def read_events(store: Store) -> Iterator[Event]:
    """Yield the events of a sweep in order; a line that was torn by a kill is left out."""
    for line in (store.get(LEDGER_FILE) or b"").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
