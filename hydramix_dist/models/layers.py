"""The layers that the adversarial networks need and torch has not in quite this form.

Letters: B batch, D feature channels, h w feature cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm(nn.Module):
    """Zero mean and unit variance of each channel of each image: no parameters, no running statistics."""

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Return the normalised features, same shape and memory format."""
        # One group a channel is instance norm. In the channels-last format torch's CPU kernel is many times slower
        # than a copy there and back; without the copy back every later layer would convert for itself.
        y_BDhw = F.group_norm(x_BDhw.contiguous(), x_BDhw.shape[1])
        if not x_BDhw.is_contiguous() and x_BDhw.is_contiguous(memory_format=torch.channels_last):
            return y_BDhw.contiguous(memory_format=torch.channels_last)
        return y_BDhw


class ReflectConv2d(nn.Conv2d):
    """A stride-1 convolution of odd kernel size whose border mirrors the image."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        self._border = (kernel_size // 2,) * 4

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """Return features of the same height and width."""
        # Autocast would widen the copied values to 32 bits and narrow them again for the convolution.
        with torch.autocast(x_BDhw.device.type, enabled=False):
            x_BDhw = F.pad(x_BDhw, self._border, mode="reflect")
        return super().forward(x_BDhw)
