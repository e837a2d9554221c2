"""Where a network lies and in which memory order."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def placed(network: M, device: torch.device, *, channels_last: bool) -> M:
    """Return the network on a device, its weights channels-last where asked for (values are the same)."""
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
    return network
