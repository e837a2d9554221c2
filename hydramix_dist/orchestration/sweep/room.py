"""What a trial of a sweep reserves, and how many of them run at a time."""

import math
from collections.abc import Mapping, Sequence

from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.doctor import GIB
from hydramix_dist.orchestration.preflight import reserved, room, shown, there
from hydramix_dist.orchestration.sweep.probe import Probe

MEMORY_MARGIN = 1.15  # on what was measured: a long training's memory is in more pieces than a short one's
DEVICE_MARGIN = 1.10
MOST_ON_A_GPU = 8  # our choice: beyond it trainings wait for each other more than they gain
DRIVER_BYTES = 512 * 2**20  # our choice: a process that has imported Ray and torch
CONTEXT_BYTES = 600 * 2**20  # our choice: what CUDA itself takes in each process, beside torch's own memory
_BLOCK = 64 * 2**20  # memory is reserved in whole blocks


def reserve(probe: Probe | None, settings: SweepSettings) -> dict[str, float]:
    """Return what a trial reserves: "CPU", on a GPU "GPU" (a share of one), and where it was measured "memory", bytes.

    Raises UserError where a GPU is too small, or `distributed.gpus` less than what was measured, or makes no sense.
    """
    import torch

    gpus_there = torch.cuda.is_available() if probe is None else probe.device_total_bytes is not None
    asked = reserved(settings.distributed, settings.runtime, gpus_there=gpus_there)
    resources = {"CPU": float(settings.runtime.threads)}
    if probe is not None:
        resources["memory"] = float(math.ceil(MEMORY_MARGIN * probe.memory_bytes / _BLOCK) * _BLOCK)
    if "GPU" in asked:
        resources["GPU"] = asked["GPU"] if probe is None else _share(probe, settings.distributed.gpus)
    return resources


def _share(probe: Probe, asked: float | None) -> float:
    """Return the share of a GPU: as asked for, else of as many trials as fit on one with a margin each."""
    if probe.device_bytes is None or probe.device_total_bytes is None:
        raise ValueError("a measurement on a CPU does not say what a trial needs of a GPU")
    needed, total = probe.device_bytes, probe.device_total_bytes
    least = f"a process of the sweep's trainings takes {needed / GIB:.1f} GiB of GPU memory, measured"
    if asked is not None:
        if needed > asked * total:
            enough = math.ceil(100 * needed / total) / 100
            raise UserError(
                f"distributed.gpus is {asked:g}, which is {asked * total / GIB:.1f} GiB of the GPU's "
                f"{total / GIB:.1f} GiB, but {least}; set distributed.gpus to {enough:g} or more, "
                "or to null"
            )
        return asked
    fits = min(MOST_ON_A_GPU, int(total / (DEVICE_MARGIN * needed)))
    if not fits:
        raise UserError(
            f"{least}, and the GPU has {total / GIB:.1f} GiB, of which {DEVICE_MARGIN - 1:.0%} are kept free; lower "
            "classifier.batch or generators.NAME.batch, set runtime.micro_batch, or take smaller networks"
        )
    return math.floor(10_000 / fits) / 10_000  # Ray counts in such parts; one rounded up would crowd out the last trial


def at_a_time(
    resources: Mapping[str, float], settings: SweepSettings, nodes: Sequence[Mapping[str, float]], where: str
) -> int:
    """Return how many trials run at a time: `concurrent`, or as many as fit into the nodes.

    `nodes` are as in `ray.nodes()`, the "Resources" of each; `where` names them in words. Raises UserError where none
    fits, or fewer than `concurrent`.
    """
    fits = room(resources, nodes)
    if settings.concurrent is not None and fits >= settings.concurrent:
        return settings.concurrent
    if not fits:
        raise UserError(
            f"a training of the sweep reserves {shown(resources)}, but {where} has room for none "
            f"({there(resources, nodes)}); " + _way_out(resources, settings, nodes)
        )
    if settings.concurrent is not None:
        raise UserError(
            f"concurrent is {settings.concurrent} at {shown(resources)} each, but {where} has room for {fits} "
            f"({there(resources, nodes)}); set concurrent to {fits} or less, or to null"
        )
    return fits


def driver_room(
    settings: SweepSettings, worker: Mapping[str, float], nodes: Sequence[Mapping[str, float]], where: str
) -> tuple[dict[str, float], int]:
    """Return what the driver of a training of several workers reserves, and how many trainings run at a time.

    A driver waits most of its time and takes no core from workers; that not more drivers begin than have room for their
    workers keeps them from waiting for each other. `worker` is what each worker reserves; that one training fits has
    been checked. Raises UserError where fewer fit than `concurrent`.
    """
    workers = settings.distributed.workers
    fits = max(1, room(worker, nodes) // workers)
    if settings.concurrent is not None and settings.concurrent > fits:
        raise UserError(
            f"concurrent is {settings.concurrent} at {workers} workers each, of {shown(worker)}, but {where} has room "
            f"for {fits} ({there(worker, nodes)}); set concurrent to {fits} or less, or to null"
        )
    return {"memory": float(DRIVER_BYTES)}, settings.concurrent or fits


def _way_out(resources: Mapping[str, float], settings: SweepSettings, nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what to change where no node has room: for each resource of which no node has enough, its key."""
    keys = {
        "CPU": f"lower runtime.threads ({settings.runtime.threads})",
        "memory": "lower classifier.batch or generators.NAME.batch, or set runtime.micro_batch",
        "GPU": "set runtime.device=cpu, or lower distributed.gpus",
    }
    short = [
        key
        for name, key in keys.items()
        if all(node.get(name, 0.0) < resources.get(name, 0.0) - 1e-9 for node in nodes)
    ]
    return "; ".join(short or ["start a node that has enough of all of them"])


def limit_device_memory(resources: Mapping[str, float]) -> None:
    """Hold this process to its share of the GPU, so that it runs out of memory itself before a neighbour does."""
    share = resources.get("GPU", 0.0)
    if share:
        import torch

        context = CONTEXT_BYTES / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(min(share, 1.0) - context, 0.01))
