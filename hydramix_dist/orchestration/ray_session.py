"""Ray for the time of a block: a private one on this machine, or a running cluster that is joined.

Whatever can be refused is refused before anything long begins.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydramix_dist.config.distributed import DistributedSettings
from hydramix_dist.config.metrics import portable_metrics
from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.config.store import portable
from hydramix_dist.data.pool import usable_cores
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.preflight import check_room, check_this_machine, grown, reserved

OBJECT_STORE_BYTES = 100 * 2**20  # trainings pass plain values alone; Ray would take 30 % of the memory

# What every process of Ray is given, private or joined, unless the user has set it.
_COMMON = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in their folder, so that relative paths keep their meaning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; the present one comes with a warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker and the end are seen after at most that, not 2 s
    # Tune: no output, loggers and signal handler of its own, its state saved at the end alone (ours is beside it), and
    # no wait of 10 minutes for a trial that does not end when asked to.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # For room, not for processes: after a lost node Ray first asks for as many workers as before, in vain.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}


@dataclass
class RaySession:
    """The Ray that trainings are launched on."""

    resources: dict[str, float]  # that a worker reserves: CPU, and GPU where it trains on one
    logs: Path | None  # the private Ray's folder of logs; on a cluster each node has its own
    keep_logs: bool = False  # set by who names a log to the user


@contextlib.contextmanager
def ray_session(
    distributed: DistributedSettings, runtime: RuntimeSettings, address: str | None
) -> Iterator[RaySession]:
    """Give a Ray with room for the workers while the block runs: a private one, or the cluster at `address`.

    The private one listens on the loopback interface alone, asks for a token, and ends with the block or the process.
    `address` has been through `check_address`: Ray itself tries a wrong one for minutes. Raises UserError where the
    workers do not fit.
    """
    opened = _private_ray(distributed, runtime) if address is None else _joined_cluster(distributed, runtime, address)
    with opened as session:
        yield session


@contextlib.contextmanager
def _private_ray(distributed: DistributedSettings, runtime: RuntimeSettings) -> Iterator[RaySession]:
    resources = check_this_machine(distributed, runtime)
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
    # In a submitted job Ray refuses variables that the job's own runtime environment has as well, even equal ones.
    environment = _unset(_COMMON | {"RAY_AUTH_MODE": "disabled", "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"})
    # Nodes have credentials of their own (a role, their environment): a runtime environment is there for all to read.
    with (
        _environment(environment),
        _started(address=address, runtime_env={"env_vars": portable() | portable_metrics()}),
    ):
        import ray

        nodes = grown([node["Resources"] for node in ray.nodes() if node["Alive"]])
        resources = reserved(distributed, runtime, gpus_there=any(node.get("GPU", 0) for node in nodes))
        check_room(distributed, resources, nodes, f"the cluster at {address}")
        yield RaySession(resources, logs=None)


@contextlib.contextmanager
def _started(**how: Any) -> Iterator[None]:
    """Start or join Ray, quietly, and leave it at the end."""
    import ray

    # Ray read these when it was imported, perhaps for another session than this one.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = how["address"] != "local"
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    before = signal.getsignal(signal.SIGTERM)
    # Ray tells of each lost worker on standard output, which belongs to results; we say it ourselves.
    ray._private.worker._worker_logs_enabled = False
    try:
        _init(how)
        signal.signal(signal.SIGTERM, before)  # Ray takes it to exit at once, which would lose a save
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _init(how: Mapping[str, Any]) -> None:
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
    except Exception as error:  # Ray has no class for it: on a machine that is much too busy its parts miss each other
        where = "on this machine" if how["address"] == "local" else f"at {how['address']}"
        raise UserError(
            f"Ray could not be started or joined {where} ({str(error).splitlines()[0]}); see whether memory, disk and "
            "cores are free (hydramix doctor), and run the command again"
        ) from error


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
