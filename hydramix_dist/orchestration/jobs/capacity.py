"""Whether a cluster can ever do what a job asks for: by its living nodes, else by what it is declared to grow to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.load import read_documents
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.cluster import Cluster
from hydramix_dist.orchestration.preflight import reserved, room, shown

ANY_MEMORY = 1e15  # bytes: what a node that is not there yet has is not known
SMALL_SHARE = 0.01  # of a GPU: what a sweep's training really needs is measured on the cluster


@dataclass(frozen=True)
class Ask:
    """So many processes with these resources each, and the keys that change it, in words."""

    processes: int
    each: Mapping[str, float]
    way_out: str


def ask_of_workers(distributed: DistributedSettings, runtime: RuntimeSettings, *, gpus_there: bool) -> Ask:
    """Return what a training over workers asks for. Raises UserError for GPUs that are contradictory."""
    each = reserved(distributed, runtime, gpus_there=gpus_there)
    key = "min_workers" if distributed.min_workers else "workers"
    return Ask(
        distributed.min_workers or distributed.workers,
        each,
        f"lower distributed.{key} ({distributed.min_workers or distributed.workers}) or distributed.cpus "
        f"({distributed.cpus:g})",
    )


def ask_of_sweep(
    distributed: DistributedSettings, runtime: RuntimeSettings, concurrent: int | None, *, gpus_there: bool
) -> Ask:
    """Return what a sweep asks for at least: one training, or as many at a time as its settings say."""
    if distributed.workers > 1:
        return ask_of_workers(distributed, runtime, gpus_there=gpus_there)
    each = reserved(distributed, runtime, gpus_there=gpus_there) | {"CPU": float(runtime.threads)}
    if "GPU" in each and distributed.gpus is None:
        each["GPU"] = SMALL_SHARE
    way_out = f"lower runtime.threads ({runtime.threads})" + (f" or concurrent ({concurrent})" if concurrent else "")
    return Ask(concurrent or 1, each, way_out)


def ask_of_one() -> Ask:
    """Return what a job asks for that computes in its own process: one CPU of a node."""
    return Ask(1, {"CPU": 1.0}, "start a node with CPUs for work (the head has none)")


def check_capacity(cluster: Cluster, ask: Ask, nodes: Sequence[Mapping[str, float]], declared: Path | None) -> None:
    """Raise UserError where neither the living nodes nor the declared ones can do what is asked for."""
    if room(ask.each, nodes) >= ask.processes:
        return
    if declared is not None:
        grown = declared_nodes(declared).best_for(ask.each)
        if (fits := room(ask.each, grown)) < ask.processes:
            raise UserError(
                f"{_asked(ask)}, but what {declared} declares never has room for more than {fits} "
                f"({_largest(grown)}); {ask.way_out}"
            )
        return
    # What an autoscaler may still start Ray tells nobody outside.
    raise UserError(
        f"{_asked(ask)}, but the cluster at {cluster.address} has room for {room(ask.each, nodes)} "
        f"({_largest(nodes)}); {ask.way_out}; where an autoscaler may start more nodes, give --cluster-file with its "
        "launcher file or RayCluster manifest"
    )


def _asked(ask: Ask) -> str:
    processes = "one process" if ask.processes == 1 else f"{ask.processes} processes"
    return f"the job asks for {processes} with {shown(ask.each)}" + (" each" if ask.processes > 1 else "")


def _largest(nodes: Sequence[Mapping[str, float]]) -> str:
    working = [node for node in nodes if node.get("CPU")]
    if not working:
        return "no node has a CPU for work"
    largest = max(working, key=lambda node: (node.get("GPU", 0.0), node["CPU"]))
    return "the largest node has " + shown(
        {name: largest.get(name, 0.0) for name in ("CPU", "GPU") if largest.get(name)}
    )


@dataclass(frozen=True)
class Declared:
    """What an autoscaler may start: each worker node of each type, and how many of them at most at a time."""

    workers: Sequence[Mapping[str, float]]
    most: int

    def some(self) -> list[Mapping[str, float]]:
        """Return as many nodes as there may be, the larger ones first."""
        return self.best_for({"CPU": 1.0})

    def best_for(self, each: Mapping[str, float]) -> list[Mapping[str, float]]:
        """Return the nodes that have the most room for such processes, as many as there may be."""
        return sorted(self.workers, key=lambda node: -room(each, [node]))[: self.most]


def declared_nodes(path: Path) -> Declared:
    """Return what a cluster may grow to by a launcher file, or by the RayCluster, else RayJob, among manifests.

    Raises UserError where the file is neither, and for a kind of worker of which it does not say how many CPUs it has.
    """
    trees = read_documents(path, f"--cluster-file {path}")
    by_kind = {tree.get("kind"): tree for tree in reversed(trees)}
    try:
        tree = by_kind.get("RayCluster") or by_kind.get("RayJob") or trees[0]
        if "available_node_types" in tree:
            return _of_launcher(tree, path)
        spec = tree["spec"].get("rayClusterSpec", tree["spec"])
        groups = [(_of_pod(group, path), int(group.get("maxReplicas", 1))) for group in spec["workerGroupSpecs"]]
        workers = [node for node, count in groups for _ in range(count)]
        return Declared(workers, len(workers))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"--cluster-file {path} declares no node types: it needs available_node_types with resources (a launcher "
            "file), or spec with workerGroupSpecs (a RayCluster or RayJob)"
        ) from error


def _of_launcher(tree: Mapping[str, Any], path: Path) -> Declared:
    head = tree.get("head_node_type")
    total = int(tree.get("max_workers", 2))
    workers: list[dict[str, float]] = []
    for name, kind in tree["available_node_types"].items():
        resources = {"memory": ANY_MEMORY} | {
            key: float(amount) for key, amount in (kind.get("resources") or {}).items()
        }
        if name == head:
            continue
        if "CPU" not in resources:  # Ray's launcher finds them by the instance type, of which nothing is known here
            raise _untold(path, f"available_node_types.{name}.resources", "CPU and GPU")
        workers += [resources] * min(int(kind.get("max_workers", total)), total)
    return Declared(workers, total)


def _of_pod(group: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Return what a worker of KubeRay has: as Ray is told, else as its container is limited."""
    told = group.get("rayStartParams") or {}
    limits = (group["template"]["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    if "num-cpus" not in told and "cpu" not in limits:
        where = f"the container's resources.limits of the worker group {group.get('groupName')}"
        raise _untold(path, where, "cpu and nvidia.com/gpu")
    cpus = told["num-cpus"] if "num-cpus" in told else math.ceil(_cores(str(limits["cpu"])))  # KubeRay tells whole ones
    gpus = told.get("num-gpus", limits.get("nvidia.com/gpu", 0))
    return {"CPU": float(cpus), "GPU": float(gpus), "memory": ANY_MEMORY}


def _untold(path: Path, where: str, keys: str) -> UserError:
    return UserError(
        f"--cluster-file {path} does not say how many CPUs a worker has; write how many CPUs and GPUs it has ({keys}) "
        f"into {where}"
    )


def _cores(text: str) -> float:
    """Return 0.5 for Kubernetes' 500m."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
