"""The faults that cluster.py measures: they befall trainings over two hosts, and tell seconds by what is waited for.

A training saves about every two seconds. What it repeats after a fault is part of the seconds, at most one interval.
"""

from collections.abc import Callable

from ray_hosts import QUICK_HEALTH
from rehearsal import (
    DEFAULT_HEALTH,
    Rehearsal,
    Training,
    between_saves,
    half_speed,
    head_lost,
    host_lost,
    link_cut,
    link_lost,
    link_slow,
)

Figures = dict[str, float]
IMAGES, CHECKPOINTS = 40_000, 400  # more than will be seen
SLOW = {"rate_mbit": 50.0, "delay_ms": 5.0, "loss": 0.002}


def passing(cluster: Rehearsal, number: int) -> Figures:
    """Return what faults cost that pass, with Ray's own health checks: seconds from a fault's end to a checkpoint."""
    cluster.ready(DEFAULT_HEALTH)
    training = _begun(cluster, f"passing-{number}")
    two = cluster.workers[1]
    return {
        "no fault: a checkpoint interval": between_saves(training),
        "one host at half speed: a checkpoint interval": half_speed(training, two),
        "50 Mbit/s, 5 ms, 0.2 % lost: a checkpoint interval": link_slow(training, two, **SLOW),
        "link cut for 10 s: next checkpoint after its mending": link_cut(training, two, 10.0),
        "bucket away for 30 s: next checkpoint after it is back": link_cut(training, cluster.storage, 30.0),
    }


def lasting(cluster: Rehearsal, number: int) -> Figures:
    """Return what the loss of a host, a link or the head costs, by whether it is noticed soon."""
    found: Figures = {}
    for how, health in (("quick checks", QUICK_HEALTH), ("Ray's own checks", DEFAULT_HEALTH)):
        for what, fault, host in (("host", host_lost, 1), ("link", link_lost, 0)):
            cluster.ready(health)
            training = _begun(cluster, f"{what}-{len(health)}-{number}", min_workers=1)
            gone_on, saved = fault(training, cluster.workers[host])
            found |= {f"{what} lost, {how}: goes on": gone_on, f"{what} lost, {how}: next checkpoint": saved}
    cluster.ready(QUICK_HEALTH)
    name = f"head-{number}"
    _, up, saved = head_lost(cluster, _begun(cluster, name), lambda: cluster.train(name, IMAGES, CHECKPOINTS))
    return found | {"head lost: started again, all nodes up": up, "head lost: next checkpoint": saved}


FAULTS: tuple[Callable[[Rehearsal, int], Figures], ...] = (passing, lasting)


def _begun(cluster: Rehearsal, name: str, **distributed: object) -> Training:
    """Return a training that works on both hosts and has saved."""
    training = cluster.train(name, IMAGES, CHECKPOINTS, **distributed)
    training.saves()
    if not all(cluster.trains(host) for host in cluster.workers):
        raise RuntimeError(f"the training {name} does not work on both hosts")
    return training
