"""A small network, and its training on any group of processes, for the tests of sharded engines."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydramix_dist.checkpoint import EngineState
from hydramix_dist.config.deepspeed import read_deepspeed
from hydramix_dist.config.schema import AdamSettings, SgdSettings
from hydramix_dist.models.placement import placed
from hydramix_dist.training.deepspeed_engine import DeepSpeedGroup
from hydramix_dist.training.engine import Engine
from hydramix_dist.training.environment import has_slow_bf16
from hydramix_dist.training.group import Group

CPU = torch.device("cpu")
ADAM, SGD = AdamSettings(lr=0.01), SgdSettings(lr=0.05)
STAGES, SIZES = range(4), (1, 2, 3)
TOPOLOGIES = list(itertools.product(STAGES, SIZES))
# By default half of them: each stage and each number of processes at least once.
EACH_TOPOLOGY = [pytest.param(s, n, marks=() if (s + n) % 2 else pytest.mark.full) for s, n in TOPOLOGIES]
RATES = [0.02, 0.02, 0.01, 0.005]  # one a step
HALF = len(RATES) // 2

# What the order of summation may cost, relative to a tensor's largest value. Measured: 1e-6 at most over six steps.
TOLERANCE = 1e-5
# In bf16 a weight that differs in its last bit may be rounded the other way, which changes it by 0.4 %, and then all
# that follows: measured 2.4e-2 over six steps. The first step alone is as exact as in fp32, but for three ranks: for
# DeepSpeed's mean over them losses are scaled by 3, which gradients in bf16 do not take without rounding.
# Without AVX-512 bf16 is computed in software, and the first step differs too: by 4.4e-4, the last by 0.11.
SLOW_BF16 = has_slow_bf16()
BF16_TOLERANCE = 0.25 if SLOW_BF16 else 5e-2


def network(norm: str = "instance", bf16: bool = False) -> nn.Module:
    """Weights of 135, 5, 3, 48 and 1 elements, so that two ranks, and three, divide some of them and others not."""
    torch.manual_seed(1)
    layer = nn.InstanceNorm2d(5, affine=True) if norm == "instance" else nn.BatchNorm2d(5)
    head = nn.Conv2d(5, 3, 3)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), layer, nn.ReLU(), head, nn.Flatten(), nn.Linear(48, 1))
    return placed(net, CPU, channels_last=True, bf16=bf16)


def samples(step: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def loss_of(output_B1: Tensor, x_BCHW: Tensor) -> Tensor:
    return (output_B1[:, 0].float() - x_BCHW.mean((1, 2, 3)) - 1).square().mean()


def pieces(step: int, batch: int, group: Group, passes: int, of_ranks: int = 1) -> list[Tensor]:
    """Return what a rank computes of a step's batch, in as equal pieces as there are; `of_ranks`: what so many do."""
    count = group.world_size * of_ranks * passes
    own = np.array_split(np.arange(count), group.world_size)[group.rank]
    return [part for i, part in enumerate(torch.tensor_split(samples(step, batch), count)) if i in own]


def train(
    group: Group,
    optimizer: AdamSettings | SgdSettings,
    steps: range = range(len(RATES)),
    state: EngineState | None = None,
    batch: int = 7,
    passes: int = 1,
    of_ranks: int = 1,
    norm: str = "instance",
    bf16: bool = False,
) -> EngineState | None:
    """Train some steps; with `of_ranks`, one process computes what so many would, piece by piece."""
    engine = group.engine(network(norm, bf16), optimizer, state)
    for step in steps:
        for x_BCHW in pieces(step, batch, group, passes, of_ranks):
            engine.backward(loss_of(engine(x_BCHW), x_BCHW), len(x_BCHW) / batch)
        engine.step(RATES[step])
    return engine.full_state()


def deepspeed(stage: int, **zero: Any) -> DeepSpeedGroup:
    config = read_deepspeed(f"zero{stage}")
    return DeepSpeedGroup({"zero_optimization": config["zero_optimization"] | zero}, CPU)


def whole(state: EngineState | None) -> EngineState:
    assert state is not None
    return state


def tensors(state: EngineState) -> Iterator[tuple[str, Tensor]]:
    """Yield weights and moments, without what batch norm counts: it sees its own rank's images."""
    for name, tensor in state.weights.items():
        if "running" not in name and "batches" not in name:
            yield name, tensor
    for moment, of_names in state.moments.items():
        for name, tensor in of_names.items():
            yield f"{moment} of {name}", tensor


def assert_close(
    state: EngineState | None, expected: EngineState | None, what: str = "", tolerance: float = TOLERANCE
) -> None:
    given, wanted = dict(tensors(whole(state))), dict(tensors(whole(expected)))
    assert given.keys() == wanted.keys()
    assert whole(state).step == whole(expected).step
    for name, tensor in wanted.items():
        error = float((given[name] - tensor).abs().max() / tensor.abs().max())
        assert error < tolerance, f"{what}: {name} differs by {error:.1e} of its largest value"


def assert_equal(state: EngineState | None, expected: EngineState | None) -> None:
    given, wanted = whole(state), whole(expected)
    assert given.step == wanted.step
    assert given.moments.keys() == wanted.moments.keys()
    for one, other in [(given.weights, wanted.weights)] + [
        (given.moments[m], wanted.moments[m]) for m in wanted.moments
    ]:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)


def teach(engine: Engine, x_BCHW: Tensor, group: Group) -> None:
    engine.backward(loss_of(engine(x_BCHW), x_BCHW), 1 / group.world_size)
    engine.step(0.01)
