"""The processes of one training. Alone in this process here; several of them in `deepspeed_engine.py`.

Collectives keep ranks in step only if all ranks make them, in the same order, whatever happens on one of them. So
whoever may fail on one rank does it inside `together`, which lets all ranks fail alike.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.schema import AdamSettings, SgdSettings
from hydramix_dist.training.engine import Engine, TorchEngine
from hydramix_dist.training.stopwatch import Stopwatch

T = TypeVar("T")


class Group(Protocol):
    """The processes of one training; all of them make the same calls in the same order."""

    rank: int
    world_size: int
    device: torch.device
    preparing: Stopwatch  # times what this process does alone in each step: to prepare its images

    @property
    def description(self) -> dict[str, str | int]:
        """Return what the numbers' last bits depend on beside a process's own facts: number of processes, engine."""

    def engine(self, module: nn.Module, optimizer: AdamSettings | SgdSettings, state: EngineState | None) -> Engine:
        """Return an engine around a model that lies on the device. Raises UserError for another model's state."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, same shape."""

    def gather(self, rows: Tensor) -> Tensor:
        """Return the equally shaped tensors of all ranks, [world_size, ...], on the device, on every rank."""

    def exchange(self, value: T) -> list[T]:
        """Return every rank's plain value, in the order of ranks, on every rank."""


class Alone:
    """One process with plain torch."""

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        """Take the device to train on."""
        self.device, self.preparing = device, Stopwatch(device)

    @property
    def description(self) -> dict[str, str | int]:
        """Return one process and plain torch."""
        return {"workers": 1, "engine": "torch"}

    def engine(self, module: nn.Module, optimizer: AdamSettings | SgdSettings, state: EngineState | None) -> Engine:
        """Return a plain torch engine."""
        return TorchEngine(module, optimizer, state)

    def sum(self, values: Tensor) -> Tensor:
        """Return the values as they are."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Return the one tensor, [1, ...]."""
        return rows[None]

    def exchange(self, value: T) -> list[T]:
        """Return the one value."""
        return [value]


def together(group: Group, act: Callable[[], T]) -> T:
    """Return what `act` returns on this rank. Where it raises on any rank, the first such error is raised on all."""
    result: T | None = None
    error: Exception | None = None
    try:
        result = act()
    except Exception as caught:
        error = caught
    if group.world_size == 1 and error is not None:
        raise error
    first = next((found for found in group.exchange(error) if found is not None), None)
    if first is not None:
        raise first
    return result  # type: ignore[return-value]  # None only where `act` returns it


def on_first(group: Group, act: Callable[[], T]) -> T:
    """Return on all ranks what `act` returns on rank 0 alone. Where it raises there, that error is raised on all."""
    return group.exchange(together(group, lambda: act() if group.rank == 0 else None))[0]  # type: ignore[return-value]
