"""Where a sweep stands, as metrics: counts by state, means by arm and N, never a series of a single training."""

import time
from collections.abc import Mapping

from hydramix_dist.orchestration.sweep.book import Book
from hydramix_dist.telemetry import Recorder
from hydramix_dist.telemetry.table import TRIAL_STATES

TELL_SECONDS = 2.0  # at most one record in this time


class SweepMetrics:
    """Records where the book stands; its counters begin at 0 with this driver."""

    def __init__(self, book: Book, recorder: Recorder, gpus: float) -> None:
        """Take the book, and the GPUs that one training reserves."""
        self._book, self._recorder, self._gpus = book, recorder, gpus
        self._gpu_seconds, self._looked = 0.0, time.monotonic()
        self._before = self._counted()
        self._told = self._ended = -1.0
        self._begun, self._begun_at = self._begun_ever(), time.monotonic()

    def tell(self, *, last: bool = False) -> None:
        """Record, if the last record is long enough ago, or this is the last one."""
        now = time.monotonic()
        self._gpu_seconds += self._gpus * self._book.counts["running"] * (now - self._looked)
        self._looked = now
        if now - self._told < TELL_SECONDS and not last:
            return
        self._told = now
        book, record = self._book, self._recorder.record
        counts = dict.fromkeys(TRIAL_STATES, 0.0) | {state: float(count) for state, count in book.counts.items()}
        counts["pending"] += book.total - len(book.entries)
        for state, count in counts.items():
            record(0, {"sweep_trials": count}, state=state)
        record(0, {"sweep_queue_age_seconds": self._queue_age(now)})
        record(0, {name: value - self._before[name] for name, value in self._counted().items()})
        if counts["done"] != self._ended:
            self._ended = counts["done"]
            for (data, arm, shots), accuracy in self._means().items():
                record(0, {"sweep_accuracy_ratio": accuracy}, data=data, arm=arm, shots=str(shots))

    def _counted(self) -> dict[str, float]:
        entries = self._book.entries
        needs = [entry.trial.needs for entry in entries.values() if entry.state == "done" and entry.trial.needs]
        trained = {key for key in needs if not entries[key].result.get("reused")}
        return {
            "sweep_failures_total": self._book.attempts_failed,
            "sweep_generators_reused_total": len(needs) - len(trained),
            "sweep_gpu_seconds_total": self._gpu_seconds,
        }

    def _queue_age(self, now: float) -> float:
        """Return the seconds since a training began, 0 where none waits that could begin."""
        begun = self._begun_ever()
        if begun != self._begun or not self._book.waiting:
            self._begun, self._begun_at = begun, now
        return now - self._begun_at

    def _begun_ever(self) -> int:
        counts = self._book.counts
        return counts["running"] + counts["done"] + counts["early"] + self._book.attempts_failed

    def _means(self) -> Mapping[tuple[str, str, int], float]:
        found: dict[tuple[str, str, int], list[float]] = {}
        for entry in self._book.entries.values():
            trial = entry.trial
            if trial.kind == "classifier" and trial.arm is not None and entry.state == "done":
                found.setdefault((trial.data, trial.arm, trial.shots), []).append(entry.result["accuracy"])
        return {cell: sum(values) / len(values) for cell, values in found.items()}
