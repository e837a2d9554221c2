"""What the tests of several hosts share: how trainings are compared, and what the hosts' exporters tell."""

import time
from typing import NamedTuple

from hosts import Host
from prometheus_client.parser import text_string_to_metric_families
from rehearsal import Rehearsal, Training

from hydramix_dist.checkpoint import Checkpoint, load_newest, weights_digest
from hydramix_dist.store import Store

# Of trainings that end with another number of workers than they began with. Rounding then makes 0.02 of a tensor's mean
# gradient, at the low rate of these; at the rate that generators have by default it was 0.8 after as many steps.
IMAGES = 600
LONG = 6400  # of those that are compared to the bit: twice what is seen while faults come and go, on two quiet cores
LONG_CHECKPOINTS = 20


def newest(training: Training, images: int = IMAGES) -> Checkpoint:
    """Return the last checkpoint of a finished training, which must have seen all images."""
    checkpoint = load_newest(Store(training.url))
    assert checkpoint is not None and checkpoint.images == images and checkpoint.fallbacks == 0
    return checkpoint


def digests(training: Training, images: int = LONG) -> dict[str, str]:
    """Return the digest of all weights and of the optimizers' moments of a finished training."""
    return {
        f"{name} {what}": weights_digest(tensors)
        for name, state in newest(training, images).engines.items()
        for what, tensors in {"weights": state.weights, **state.moments}.items()
    }


def told(hosts: Rehearsal, host: Host, name: str, run: str) -> float | None:
    """Return the sum of a host's values of one metric of a run, None where its exporter tells none."""
    values = [
        sample.value
        for family in text_string_to_metric_families(hosts.metrics(host))
        for sample in family.samples
        if sample.name == f"hydramix_{name}" and sample.labels.get("run") == run
    ]
    return sum(values) if values else None


class Pace(NamedTuple):
    """How fast a training was for some seconds, as its hosts' exporters tell."""

    batch: dict[str, float]  # seconds in which a worker prepares its images, by host
    step: float  # seconds of a step of all workers


def pace(hosts: Rehearsal, run: str, seconds: float) -> Pace:
    """Return the pace of the next seconds; a process tells of itself every two."""
    steps, sums = _steps(hosts, run)
    seen: dict[str, list[float]] = {host.name: [] for host in hosts.workers}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        for host in hosts.workers:
            value = told(hosts, host, "batch_seconds", run)
            seen[host.name] += [] if value is None else [value]
    steps_then, sums_then = _steps(hosts, run)
    means = {name: sum(values) / len(values) for name, values in seen.items()}
    return Pace(means, (sums_then - sums) / (steps_then - steps))


def _steps(hosts: Rehearsal, run: str) -> tuple[float, float]:
    """Return the number of steps and their seconds, which the worker of rank 0 tells, on whichever host it is."""

    def of(what: str) -> float:
        return sum(told(hosts, host, f"step_seconds_{what}", run) or 0.0 for host in hosts.workers)

    return of("count"), of("sum")
