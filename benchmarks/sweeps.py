"""What the benchmarks of sweeps share: a sweep of settings that stand in the benchmark, and the times in its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydramix_dist.config.axes import expanded
from hydramix_dist.config.load import build
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.orchestration.sweep.ledger import Event
from hydramix_dist.orchestration.sweep.run import Sweep
from hydramix_dist.store import Store

_SOURCE = "the benchmark's settings"


def sweep_of(tree: Mapping[str, Any], out: Path, shared: Path) -> Sweep:
    """Return a sweep on this machine; `shared` keeps imported images and generators."""
    settings = build(SweepSettings, dict(tree), _SOURCE)
    return Sweep(settings, expanded(settings, _SOURCE), Store(out), Store(shared), _SOURCE)


def times(events: Sequence[Event], kind: str) -> list[float]:
    """Return when events of a kind were written, in order (Unix seconds). Raises ValueError where there are none."""
    found = [float(event["time"]) for event in events if event["event"] == kind]
    if not found:
        raise ValueError(f"the sweep's record has no event '{kind}'")
    return found


def tuning_seconds(events: Sequence[Event]) -> float:
    """Return the time from the first training that began to the last that was done: a sweep without Ray's start."""
    return times(events, "done")[-1] - times(events, "begun")[0]
