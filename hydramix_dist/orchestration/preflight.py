"""What is refused before Ray is started or joined: workers that do not fit, addresses that lead nowhere."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.errors import UserError
from hydramix_dist.evaluation.wording import listed
from hydramix_dist.orchestration.doctor import GIB
from hydramix_dist.orchestration.jobs.cluster import shown_address, wrong_token
from hydramix_dist.orchestration.jobs.inside import given_by_ray

# What an autoscaler may start: a JSON list of how many nodes with which resources, given by `hydramix submit`.
NODES = "HYDRAMIX_NODES"
REACH_SECONDS = 5.0  # for the cluster's head to take a connection
TRIAL_SECONDS = 10.0  # for each of two trials: all in all an answer comes within half a minute


def reserved(distributed: DistributedSettings, runtime: RuntimeSettings, *, gpus_there: bool) -> dict[str, float]:
    """Return what a worker reserves. Raises UserError where GPUs are reserved for a training on the CPU."""
    on_gpu = runtime.device == "cuda" or (runtime.device == "auto" and gpus_there)
    gpus = distributed.gpus if distributed.gpus is not None else float(on_gpu)
    if gpus and not on_gpu:
        raise UserError(
            f"distributed.gpus is {gpus:g}, but the training is on the CPU (runtime.device={runtime.device}, "
            f"{'GPUs' if gpus_there else 'no GPU'} there); set distributed.gpus=0"
        )
    if on_gpu and not gpus:
        raise UserError("distributed.gpus is 0 for a training on GPUs; set runtime.device=cpu to train on CPUs")
    if 0 < gpus < 1 and distributed.workers > 1:
        raise UserError(
            f"distributed.gpus is {gpus:g}: two workers of one training cannot share a GPU (NCCL refuses it); set it "
            "to 1, and distributed.workers to the number of GPUs"
        )
    return {"CPU": distributed.cpus} | ({"GPU": gpus} if gpus else {})


def room(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many times the resources fit into the nodes at a time, none of them divided among nodes."""
    return sum(min(_times(name, node.get(name, 0.0), need) for name, need in resources.items()) for node in nodes)


def _times(name: str, amount: float, need: float) -> int:
    if name == "GPU" and need < 1:  # a share lies on one device
        return int(amount) * int(1 / need + 1e-9)
    return int(amount / need + 1e-9)


def check_room(
    distributed: DistributedSettings, resources: Mapping[str, float], nodes: list[dict[str, float]], where: str
) -> None:
    """Raise UserError where fewer workers fit into the nodes than the training goes on with."""
    fits = room(resources, nodes)
    needed = distributed.min_workers or distributed.workers
    if fits >= needed:
        return
    key = "min_workers" if distributed.min_workers else "workers"
    raise UserError(
        f"distributed.{key} is {needed} at {shown(resources)} each, but {where} has room for {fits} "
        f"({there(resources, nodes)}); lower distributed.{key}"
        + ("" if "GPU" in resources else ", or distributed.cpus (0.5: two workers share a core)")
    )


def shown(resources: Mapping[str, float]) -> str:
    """Return resources as "2 CPU, 1.5 GiB of memory and 0.25 GPU"."""
    return listed(
        [
            f"{amount / GIB:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"
            for name, amount in resources.items()
        ]
    )


def there(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what the nodes that compute have of such resources, node by node."""
    each = (shown({name: node.get(name, 0.0) for name in resources}) for node in nodes if node.get("CPU"))
    return ", ".join(each) or "no CPU"


def check_this_machine(distributed: DistributedSettings, runtime: RuntimeSettings) -> dict[str, float]:
    """Return what a worker reserves here. Raises UserError where the workers do not fit into this machine."""
    import torch

    here = {"CPU": float(usable_cores()), "GPU": float(torch.cuda.device_count())}
    resources = reserved(distributed, runtime, gpus_there=here["GPU"] > 0)
    check_room(distributed, resources, [here], "this machine")
    return resources


def grown(living: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the nodes that there may be: those that live, or more of them where a job was told what may be started.

    An autoscaler starts nodes for what is asked for, and Ray does not tell which it may start.
    """
    declared = [node for count, node in json.loads(os.environ.get(NODES, "[]")) for _ in range(count)]

    def cpus(nodes: list[dict[str, float]]) -> float:
        return sum(node.get("CPU", 0.0) for node in nodes)

    return declared if cpus(declared) > cpus(living) else living


def check_address(address: str) -> None:
    """Raise UserError where no Ray cluster can be joined at `address`, in at most half a minute."""
    if given_by_ray(address):
        return
    try:
        socket.create_connection(_host_and_port(address), REACH_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at --address {address} ({error}); is the cluster up (ray status), and is this its port?"
        ) from error
    # In processes of their own: where an address or a token is wrong Ray tries for minutes, and nothing can stop it.
    trouble = _trial("-m", "ray.scripts.scripts", "health-check", "--address", address)
    if trouble is not None and ("AuthenticationError" in trouble or "InvalidAuthToken" in trouble):
        raise wrong_token(address, given=True)
    if trouble is not None:
        raise UserError(
            f"what answers at --address {address} is no Ray cluster of the version here ({trouble}); give the address "
            "of its head"
        )
    trouble = _trial("-c", f"import ray; ray.init('{address}', log_to_driver=False, logging_level='ERROR')")
    if trouble is not None:
        raise UserError(
            f"the cluster at {address} cannot be joined from this machine ({trouble}); run the command on one of its "
            "nodes"
        )


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if not found or int(found[2]) > 65535:
        raise UserError(
            f"--address is {shown_address(address)}; give HOST:PORT of the cluster's head, such as 10.0.0.1:6379"
        )
    return found[1].strip("[]"), int(found[2])


def _trial(*arguments: str) -> str | None:
    """Return None where a Python process with these arguments comes to a good end, else what it said last."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            check=False,
            env={"RAY_AUTH_MODE": "disabled", **os.environ},
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TRIAL_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return said[-1].strip()[:200] if said else f"exit code {done.returncode}"
