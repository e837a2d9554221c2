"""Batch norm over ranks is batch norm over the whole batch: real processes, uneven shares.

Legend: B images, C channels, H W pixels.
"""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hydramix_dist.config.schema import ClassifierSettings
from hydramix_dist.models.classifiers import build_classifier
from hydramix_dist.training.batch_norm import SynchronisedBatchNorm2d, synchronised

CHANNELS = 6
SHARES = {2: (5, 2), 3: (5, 1, 4)}  # images of each rank
FAR = 1e4  # a mean whose square swallows the variance in 32 bits


@dataclass(frozen=True)
class Case:
    """One input: its type, the mean of its channels, its memory format, and how far results may lie from exact ones.

    The distance is relative to the largest exact value.
    """

    dtype: torch.dtype
    mean: float
    channels_last: bool
    near: float

    @property
    def name(self) -> str:
        order = "channels_last" if self.channels_last else "contiguous"
        return f"{str(self.dtype).removeprefix('torch.')}-{self.mean:g}-{order}"


CASES = [
    Case(torch.float64, 0, False, 1e-14),
    Case(torch.float32, 0, False, 5e-7),
    Case(torch.float32, 0, True, 5e-7),
    # Plain batch norm is no better there: 32 bits hold the input itself to 1e-3 of its deviation.
    Case(torch.float32, FAR, False, 2e-3),
    Case(torch.float32, FAR, True, 2e-3),
    # One rounding to 8 bits forward; backward the sum of two rounded terms.
    Case(torch.bfloat16, 3, False, 8e-3),
    Case(torch.bfloat16, 3, True, 8e-3),
]


def inputs(case: Case, world_size: int) -> tuple[Tensor, Tensor]:
    """Return the whole batch x_BCHW, channels of different deviation, and the weights of its loss."""
    size = (2, sum(SHARES[world_size]), CHANNELS, 4, 3)
    x_BCHW, weights_BCHW = torch.randn(size, generator=seeded(1), dtype=torch.float64)
    x_BCHW = x_BCHW * torch.arange(1, CHANNELS + 1).view(-1, 1, 1) + case.mean
    if case.channels_last:
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    return x_BCHW.to(case.dtype), weights_BCHW.to(case.dtype)


def layer(dtype: torch.dtype) -> nn.BatchNorm2d:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(CHANNELS, dtype=dtype)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


def trained(norm: nn.Module, x_BCHW: Tensor, weights_BCHW: Tensor) -> dict[str, Any]:
    """Return all that one pass forward and backward gives."""
    x_BCHW = x_BCHW.clone().requires_grad_()
    y_BCHW = norm(x_BCHW)
    (y_BCHW * weights_BCHW).sum().backward()
    return {"output": y_BCHW.detach(), "gradient of input": x_BCHW.grad, **learned(norm)}


def learned(network: nn.Module) -> dict[str, Any]:
    """Return the gradients of the weights, and the running statistics."""
    return {f"gradient of {name}": p.grad for name, p in network.named_parameters()} | dict(network.named_buffers())


def mine(images_B: Tensor) -> Tensor:
    """Return this rank's share of the whole batch."""
    return images_B.split(SHARES[dist.get_world_size()])[dist.get_rank()]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what runs on the ranks


def run_cases() -> dict[str, dict[str, Tensor]]:
    found = {}
    for case in CASES:
        x_BCHW, weights_BCHW = map(mine, inputs(case, dist.get_world_size()))
        norm = synchronised(layer(torch.promote_types(case.dtype, torch.float32)))
        found[case.name] = trained(norm, x_BCHW, weights_BCHW)
    return found


def run_network() -> dict[str, Tensor]:
    return network_values(synchronised(small_network()), mine(network_images(dist.get_world_size())))


def run_differences() -> tuple[float, float]:
    """Return the slope of the loss of all ranks along one direction of all inputs: by differences, by gradients."""
    x_BCHW, weights_BCHW = map(mine, inputs(CASES[0], dist.get_world_size()))
    toward_BCHW = torch.randn(x_BCHW.shape, generator=seeded(dist.get_rank()), dtype=x_BCHW.dtype)
    norm = synchronised(layer(x_BCHW.dtype))

    def over_ranks(value: Tensor) -> float:
        dist.all_reduce(value)
        return float(value)

    def loss(x_BCHW: Tensor) -> float:
        return over_ranks((norm(x_BCHW).detach() * weights_BCHW).sum())

    differences = (loss(x_BCHW + 1e-5 * toward_BCHW) - loss(x_BCHW - 1e-5 * toward_BCHW)) / 2e-5
    gradient_BCHW = trained(norm, x_BCHW, weights_BCHW)["gradient of input"]
    return differences, over_ranks((gradient_BCHW * toward_BCHW).sum())


def run_evaluation() -> tuple[Tensor, Tensor]:
    """Return what a trained layer gives in evaluation mode, on other images on each rank, beside the plain layer."""
    x_BCHW = torch.randn(2, CHANNELS, 4, 3, generator=seeded(dist.get_rank()))
    norm = synchronised(layer(torch.float32))
    norm(x_BCHW)
    plain = layer(torch.float32)
    plain.load_state_dict(norm.state_dict())
    return norm.eval()(x_BCHW).detach(), plain.eval()(x_BCHW).detach()


def run_all() -> dict[str, Any]:
    return {
        "cases": run_cases(),
        "network": run_network(),
        "differences": run_differences(),
        "evaluation": run_evaluation(),
    }


@pytest.fixture(scope="module", params=SHARES, ids=lambda size: f"{size} ranks")
def by_rank(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return ranks.run(request.param, run_all)


# ---- one process, and what the ranks are held against


def small_network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.Conv2d(8, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(True),
    )
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def network_images(world_size: int) -> Tensor:
    return torch.randn(sum(SHARES[world_size]), 3, 8, 8, generator=seeded(4))


def network_values(network: nn.Module, images_BCHW: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        y_BCHW = network(images_BCHW.contiguous(memory_format=torch.channels_last))
    assert y_BCHW.dtype == torch.bfloat16
    y_BCHW.float().square().sum().backward()
    return learned(network)


def whole(case: Case, world_size: int) -> dict[str, Any]:
    """Return what plain batch norm makes of the whole batch, in 64 bits from the case's own input."""
    x_BCHW, weights_BCHW = inputs(case, world_size)
    norm = layer(torch.promote_types(case.dtype, torch.float32)).double()
    return trained(norm, x_BCHW.double(), weights_BCHW.double())


def joined(parts: list[dict[str, Tensor]], *by_image: str) -> dict[str, Tensor]:
    """Return the ranks' values as one process has them: images in a row, gradients summed, statistics of any rank."""
    values = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        values[name] = torch.cat(each) if name in by_image else sum(each) if "gradient" in name else each[0]
    return values


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the largest difference over the largest exact value."""
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_those_of_the_whole_batch(by_rank: list[dict[str, Any]], case: Case) -> None:
    parts = [rank["cases"][case.name] for rank in by_rank]
    exact = whole(case, len(parts))
    found = joined(parts, "output", "gradient of input")
    assert found.keys() == exact.keys()
    for name in exact:
        assert distance(found[name], exact[name]) <= case.near, name
    assert found["output"].dtype == found["gradient of input"].dtype == case.dtype
    assert torch.equal(found["num_batches_tracked"], torch.tensor(1))
    order = torch.channels_last if case.channels_last else torch.contiguous_format
    assert all(part["output"].is_contiguous(memory_format=order) for part in parts)


def test_every_rank_keeps_the_same_statistics(by_rank: list[dict[str, Any]]) -> None:
    for case in CASES:
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            first, *others = (rank["cases"][case.name][buffer] for rank in by_rank)
            assert all(torch.equal(first, other) for other in others), (case.name, buffer)


def test_gradients_are_the_slope_of_the_loss_of_all_ranks(by_rank: list[dict[str, Any]]) -> None:
    for rank in by_rank:
        differences, gradients = rank["differences"]
        assert gradients == pytest.approx(differences, rel=1e-6)


def test_a_network_in_bf16_learns_as_from_the_whole_batch(by_rank: list[dict[str, Any]]) -> None:
    exact = network_values(small_network(), network_images(len(by_rank)))
    found = joined([rank["network"] for rank in by_rank])
    for name in exact:
        # bf16 rounds to 2^-8, a few times in a row, and in another order where a batch is divided.
        assert distance(found[name], exact[name]) <= 0.03, name


def test_one_process_and_evaluation_are_plain_batch_norm() -> None:
    x_BCHW, weights_BCHW = inputs(CASES[1], 2)
    plain, ours = layer(torch.float32), synchronised(layer(torch.float32))
    expected, found = trained(plain, x_BCHW, weights_BCHW), trained(ours, x_BCHW, weights_BCHW)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(ours.eval()(x_BCHW), plain.eval()(x_BCHW))


def test_evaluation_on_ranks_takes_the_kept_statistics(by_rank: list[dict[str, Any]]) -> None:
    for rank in by_rank:
        found, expected = rank["evaluation"]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("network", ["wrn-10-1", "resnet50"])
def test_every_batch_norm_is_replaced_and_no_weight_changes(network: str) -> None:
    torch.manual_seed(0)
    plain = build_classifier(ClassifierSettings(network=network), 10)
    ours = synchronised(copy.deepcopy(plain))
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(type(norm) is SynchronisedBatchNorm2d for norm in norms)
    before, after = plain.state_dict(), ours.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("without", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_other_batch_norms_are_refused_by_name(without: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'0' needs weights"):
        synchronised(nn.Sequential(nn.BatchNorm2d(4, **without)))
