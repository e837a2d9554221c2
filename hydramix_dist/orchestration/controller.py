"""What Ray Train's controller is given: how workers are brought together, and whom to tell of failures.

Imports Ray at its top: import it late.
"""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.torch import TorchConfig

from hydramix_dist.orchestration.desk import Failure
from hydramix_dist.orchestration.worker import LeavingError, heed_sigterm

_TorchBackend: Any = TorchConfig().backend_cls


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Brings the workers together by `torch.distributed`, in each one's main thread."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(heed_sigterm)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Do nothing: the processes end now, and to take leave of a dead one would only take time."""


class Together(TorchConfig):  # type: ignore[misc]
    """`torch.distributed` between the workers, over `backend` nccl or gloo."""

    @property
    def backend_cls(self) -> Any:
        """Return the backend."""
        return _Backend


class Reporter(UserCallback):  # type: ignore[misc]
    """Leaves word of failed workers, and keeps Ray from starting workers again for what has ended for good."""

    def __init__(self, desk: ActorHandle) -> None:
        self._desk = desk

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Take what the controller found. Raises RuntimeError, which ends the controller, where no more is to come."""
        failures = {rank: _failure(error) for rank, error in worker_exceptions.items()}
        if ray.get(self._desk.lose.remote(failures)):
            raise RuntimeError("the training has ended")


def _failure(error: Exception) -> Failure:
    cause = getattr(error, "health_check_failure", error)  # Ray's word for a worker that answers no more
    if isinstance(cause, LeavingError):
        return Failure(0 if cause.own else 1, str(cause))
    if isinstance(cause, RayActorError):
        gone = "its node has died" in str(cause)
        return Failure(0, "was lost with its node" if gone else "was killed, or crashed (often: memory ran out)")
    if "by peer" in str(cause):  # gloo's word where another worker has gone
        return Failure(2, "lost the connection to another worker")
    return Failure(2, f"failed: {type(cause).__name__}: {str(cause).strip()[:300]}")
