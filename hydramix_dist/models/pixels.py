"""Pixels at the networks' door: bytes outside, floats in [-1, 1] inside."""

import torch
from torch import Tensor


def to_float(x: Tensor) -> Tensor:
    """Return float32 pixels in [-1, 1] from uint8 pixels 0..255, any shape (ChimeraMix: mean 0.5, deviation 0.5)."""
    return x.float() / 127.5 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Return uint8 pixels from floats, rounded to the nearest value; floats outside [-1, 1] are clamped."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
