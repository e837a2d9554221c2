"""Where a network lies, in which memory order, and in which precision it computes."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def placed(network: M, device: torch.device, *, channels_last: bool, bf16: bool = False) -> M:
    """Return the network on a device, its weights channels-last where asked for (values are the same).

    With `bf16` its forward runs under autocast: weights, and so gradients and optimizer, stay in fp32.
    """
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs lack it
    if bf16:
        # Inside the network, not around its call: DeepSpeed switches off an autocast that surrounds its engine.
        network.forward = torch.autocast(device.type, torch.bfloat16)(network.forward)
    return network
