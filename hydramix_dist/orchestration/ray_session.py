"""Ray for the time of a block: a private one on this machine, or a running cluster that is joined.

Whatever can be refused is refused before anything long begins. Ray reads much of its environment when it is imported:
so it is imported here, once that is set.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.errors import UserError

REACH_SECONDS = 5.0  # for the cluster's head to take a connection
JOIN_SECONDS = 20.0  # for the whole way in; Ray itself tries a wrong token for 20 s and a wrong address for minutes
OBJECT_STORE_BYTES = 100 * 2**20  # trainings pass plain values alone; Ray would take 30 % of the memory

# What every process of Ray is given, private or joined, unless the user has set it.
_COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in their folder, so that relative paths keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; the present one comes with a warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker and the end are seen after at most that, not 2 s
    # For room, not for processes: after a lost node Ray first asks for as many workers as before, in vain.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}


@dataclass
class RaySession:
    """The Ray that trainings are launched on; `workers_fit` of its `resources` were found before."""

    resources: dict[str, float]  # that a worker reserves: CPU, and GPU where it trains on one
    logs: Path | None  # the private Ray's folder of logs; on a cluster each node has its own
    keep_logs: bool = False  # set by who names a log to the user


@contextlib.contextmanager
def ray_session(
    distributed: DistributedSettings, runtime: RuntimeSettings, address: str | None
) -> Iterator[RaySession]:
    """Give a Ray with room for the workers while the block runs: a private one, or the cluster at `address`.

    The private one listens on the loopback interface alone, asks for a token, and ends with the block or the process.
    Raises UserError where the workers do not fit, and where the cluster cannot be joined.
    """
    if address is None:
        with _private_ray(distributed, runtime) as session:
            yield session
    else:
        with _joined_cluster(distributed, runtime, address) as session:
            yield session


@contextlib.contextmanager
def _private_ray(distributed: DistributedSettings, runtime: RuntimeSettings) -> Iterator[RaySession]:
    import torch

    here = {"CPU": float(usable_cores()), "GPU": float(torch.cuda.device_count())}
    resources = _reserved(distributed, runtime, gpus_there=here["GPU"] > 0)
    _check_room(distributed, resources, [here], "this machine")
    # Sockets lie in it, and their paths may have 107 characters: a folder of the run's own would be too deep.
    folder = Path(tempfile.mkdtemp(prefix="hydramix-ray-", dir="/tmp"))
    session = RaySession(resources, logs=folder / "ray" / "session_latest" / "logs")
    try:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Meant for other systems: with it Ray's processes name themselves 127.0.0.1 and listen nowhere else.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # workers import what this process can import
        }
        with (
            _environment(environment | _unset(_COMMON)),
            _started(
                address="local",
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder / "ray"),
            ),
        ):
            yield session
    finally:
        if session.keep_logs:
            (folder / "token").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _joined_cluster(distributed: DistributedSettings, runtime: RuntimeSettings, address: str) -> Iterator[RaySession]:
    environment = _unset(_COMMON | {"RAY_AUTH_MODE": "disabled"})
    with _environment(environment):
        _check_address(address)
        with _started(address=address):
            import ray

            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            resources = _reserved(distributed, runtime, gpus_there=any(node.get("GPU", 0) for node in nodes))
            _check_room(distributed, resources, nodes, f"the cluster at {address}")
            yield RaySession(resources, logs=None)


@contextlib.contextmanager
def _started(**how: Any) -> Iterator[None]:
    """Start or join Ray, quietly, and leave it at the end."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    # Ray tells of each lost worker on standard output, which belongs to results; we say it ourselves.
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
        signal.signal(signal.SIGTERM, before)  # Ray takes it to exit at once, which would lose a save
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _reserved(distributed: DistributedSettings, runtime: RuntimeSettings, *, gpus_there: bool) -> dict[str, float]:
    """Return what a worker reserves. Raises UserError where GPUs are reserved for a training on the CPU."""
    on_gpu = runtime.device == "cuda" or (runtime.device == "auto" and gpus_there)
    gpus = distributed.gpus if distributed.gpus is not None else float(on_gpu)
    if gpus and not on_gpu:
        raise UserError(
            f"distributed.gpus is {gpus:g}, but the training is on the CPU (runtime.device={runtime.device}, "
            f"{'GPUs' if gpus_there else 'no GPU'} there); set distributed.gpus=0"
        )
    if 0 < gpus < 1 and distributed.workers > 1:
        raise UserError(
            f"distributed.gpus is {gpus:g}: two workers of one training cannot share a GPU (NCCL refuses it); set it "
            "to 1, and distributed.workers to the number of GPUs"
        )
    return {"CPU": distributed.cpus} | ({"GPU": gpus} if gpus else {})


def _check_room(
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


def _check_address(address: str) -> None:
    """Raise UserError where no Ray cluster can be joined at `address`, in at most half a minute."""
    found = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if not found:
        raise UserError(f"--address is '{address}'; give HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nothing answers at --address {address} ({error}); is the cluster up (ray status), and is this its port?"
        ) from error
    # In a process of its own: at a wrong address Ray tries for minutes, and nothing can stop it.
    program = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=JOIN_SECONDS, check=False
        )
        failed, said = probe.returncode != 0, probe.stderr
    except subprocess.TimeoutExpired as late:
        failed, said = True, (late.stderr or b"").decode(errors="replace")
    if not failed:
        return
    if "AuthenticationError" in said or "InvalidAuthToken" in said:
        raise UserError(
            f"the cluster at {address} asks for another token than this process has: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        )
    last = next((line for line in reversed(said.splitlines()) if "Error: " in line), "it does not answer as Ray does")
    raise UserError(
        f"the Ray cluster at {address} cannot be joined: {last}. Give the address of its head, and run this on one of "
        "its nodes with the same versions of Python and Ray"
    )


def _unset(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the user has not set."""
    return {name: value for name, value in variables.items() if name not in os.environ}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
