"""Pixels survive the way into the networks' range and back."""

import torch

from hydramix_dist.models.pixels import to_float, to_uint8


def test_every_byte_comes_back() -> None:
    bytes_N = torch.arange(256, dtype=torch.uint8)
    x_N = to_float(bytes_N)
    assert x_N.dtype == torch.float32
    assert (x_N[0], x_N[-1]) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x_N), bytes_N)


def test_floats_are_rounded_to_the_nearest_byte_and_clamped() -> None:
    half = 1 / 255  # half a byte's step in [-1, 1]
    x_N = torch.tensor([-3.0, -1.0 + 0.9 * half, -1.0 + 1.1 * half, 1.0 - 1.1 * half, 1.0 - 0.9 * half, 3.0])
    assert to_uint8(x_N).tolist() == [0, 0, 1, 254, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]
