"""What is refused before Ray is started or joined: workers that do not fit, addresses that lead nowhere."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.errors import UserError

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


def check_room(
    distributed: DistributedSettings, resources: Mapping[str, float], nodes: list[dict[str, float]], where: str
) -> None:
    """Raise UserError where fewer workers fit into the nodes than the training goes on with."""
    room = sum(int(min(node.get(name, 0.0) / need + 1e-9 for name, need in resources.items())) for node in nodes)
    needed = distributed.min_workers or distributed.workers
    if room >= needed:
        return
    each = " and ".join(f"{need:g} {name}" for name, need in resources.items())
    there = ", ".join(
        " and ".join(f"{node.get(name, 0.0):g} {name}" for name in resources) for node in nodes if node.get("CPU")
    )
    key = "min_workers" if distributed.min_workers else "workers"
    raise UserError(
        f"distributed.{key} is {needed} at {each} each, but {where} has room for {room} ({there or 'no CPU'}); lower "
        f"distributed.{key}" + ("" if "GPU" in resources else ", or distributed.cpus (0.5: two workers share a core)")
    )


def check_this_machine(distributed: DistributedSettings, runtime: RuntimeSettings) -> dict[str, float]:
    """Return what a worker reserves here. Raises UserError where the workers do not fit into this machine."""
    import torch

    here = {"CPU": float(usable_cores()), "GPU": float(torch.cuda.device_count())}
    resources = reserved(distributed, runtime, gpus_there=here["GPU"] > 0)
    check_room(distributed, resources, [here], "this machine")
    return resources


def check_address(address: str) -> None:
    """Raise UserError where no Ray cluster can be joined at `address`, in at most half a minute."""
    try:
        socket.create_connection(_host_and_port(address), REACH_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"nothing answers at --address {address} ({error}); is the cluster up (ray status), and is this its port?"
        ) from error
    # In processes of their own: where an address or a token is wrong Ray tries for minutes, and nothing can stop it.
    trouble = _trial("-m", "ray.scripts.scripts", "health-check", "--address", address)
    if trouble is not None and ("AuthenticationError" in trouble or "InvalidAuthToken" in trouble):
        raise UserError(
            f"the cluster at {address} asks for another token than this process has: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        )
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
        raise UserError(f"--address is '{address}'; give HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
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
