"""What a sweep is going to take: all its trainings, measured on one of each shape before any of them begins."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from hydramix_dist.data.pool import usable_cores
from hydramix_dist.orchestration.display import Display
from hydramix_dist.orchestration.preflight import reserved
from hydramix_dist.orchestration.ray_session import ray_session
from hydramix_dist.orchestration.sweep.design import Design, Trial
from hydramix_dist.orchestration.sweep.forecast import Forecast, forecast
from hydramix_dist.orchestration.sweep.ledger import read_events
from hydramix_dist.orchestration.sweep.probe import Probe, probe
from hydramix_dist.orchestration.sweep.room import at_a_time, driver_room, reserve
from hydramix_dist.orchestration.sweep.run import Sweep, check_sweep, make_design, segment


@dataclass(frozen=True)
class Outlook:
    """A sweep's trainings in the order they are to begin, and what they are expected to take."""

    trials: tuple[Trial, ...]
    resources: Mapping[str, float]  # that a training reserves, or the driver of one of several workers
    forecast: Forecast


def look_ahead(sweep: Sweep, display: Display) -> Outlook:
    """Return the outlook of a sweep; images are imported and segmented for it, nothing is trained but for seconds.

    Raises UserError as `run_sweep` for what can be refused before trainings begin.
    """
    check_sweep(sweep)
    design = make_design(sweep, display)
    segment(design, display)
    trials = planned(design)
    known, nodes, where = _measured(sweep, design, display)
    resources = reserve(known, sweep.settings)
    if sweep.settings.distributed.workers > 1:
        worker = reserved(sweep.settings.distributed, sweep.settings.runtime, gpus_there="GPU" in resources)
        resources, slots = driver_room(sweep.settings, worker, nodes, where)
    else:
        slots = at_a_time(resources, sweep.settings, nodes, where)
    finished = {event["key"] for event in read_events(sweep.out) if event["event"] in ("done", "early")}
    finished |= finished_generators(design)
    needs = {trial.key: trial.needs for trial in trials if trial.needs is not None}
    return Outlook(
        tuple(trials),
        resources,
        forecast(
            {trial.key: trial.task for trial in trials},
            needs,
            finished & {trial.key for trial in trials},
            len(needs),
            known,
            slots,
        ),
    )


def _measured(sweep: Sweep, design: Design, display: Display) -> tuple[Probe, list[Mapping[str, float]], str]:
    """Return the probe, what the nodes have, and where they are: this machine, or the cluster that is joined."""
    if sweep.address is None:
        here = {"CPU": float(usable_cores()), "memory": float(_memory_bytes()), "GPU": _gpus()}
        return probe(design.samples(), design.shared, display.progress), [here], "this machine"
    with ray_session(sweep.settings.distributed, sweep.settings.runtime, sweep.address):
        from hydramix_dist.orchestration.sweep.tuner import nodes, probed

        return probed(design), nodes(), f"the cluster at {sweep.address}"


def planned(design: Design) -> list[Trial]:
    """Return every training once; settings that a search is to draw are those of the file."""
    trials: dict[str, Trial] = {}
    search = design.settings.search
    for group in design.groups.values():
        for index in range(search.trials if search else 0):
            _add(trials, design.candidate(group, index, {}))
    for cell in design.cells:
        _add(trials, design.final(cell, {}))
    return list(trials.values())


def finished_generators(design: Design) -> set[str]:
    """Return the keys of the generators that are finished among those that sweeps share."""
    ending = "/result.json"
    names = (path.removesuffix(ending) for path in design.shared.child("generators").list() if path.endswith(ending))
    return {f"generators/{name}" for name in names if "/" not in name}


def _add(trials: dict[str, Trial], found: Iterable[Trial]) -> None:
    for trial in found:
        trials.setdefault(trial.key, trial)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> float:
    return float(torch.cuda.device_count())
