"""Classifiers: the benchmark's sizes, any side and batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hydramix_dist.config.schema import ClassifierSettings
from hydramix_dist.models.classifiers import build_classifier


def build(name: str, num_classes: int = 10, dropout: float = 0.3) -> nn.Module:
    return build_classifier(ClassifierSettings(network=name, dropout=dropout), num_classes)


@pytest.mark.parametrize(("num_classes", "count"), [(10, 10_961_370), (100, 11_007_540)])
def test_wrn_16_8_has_the_benchmarks_parameter_count(num_classes: int, count: int) -> None:
    assert sum(p.numel() for p in build("wrn-16-8", num_classes).parameters()) == count


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-2", "resnet50"])
def test_takes_one_image_when_evaluated_and_two_when_trained(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, num_classes=7)
    x_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    logits = network.train()(x_BCHW)
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    with torch.no_grad():
        assert network.eval()(x_BCHW[:1]).shape == (1, 7)


def test_wide_resnet_takes_any_side() -> None:
    with torch.no_grad():
        assert build("wrn-10-1").eval()(torch.zeros(1, 3, 48, 40)).shape == (1, 10)


def test_an_evaluated_image_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network = build("wrn-10-2").eval()
    x_BCHW = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(x_BCHW)[1:2], network(x_BCHW[1:2]), atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only_and_only_where_asked() -> None:
    torch.manual_seed(0)
    x_BCHW = torch.rand(4, 3, 32, 32)
    dropping, plain = build("wrn-10-1", dropout=0.5), build("wrn-10-1", dropout=0.0)
    with torch.no_grad():
        assert not torch.equal(dropping(x_BCHW), dropping(x_BCHW))
        assert torch.equal(plain(x_BCHW), plain(x_BCHW))
        assert torch.equal(dropping.eval()(x_BCHW), dropping(x_BCHW))


def test_convolutions_start_with_he_normal_weights() -> None:
    """Variance 2 / (outputs x kernel area): checked on the largest convolutions, where the estimate is sharp."""
    torch.manual_seed(0)
    network = build("wrn-16-4")
    wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 100_000]
    assert wide
    for convolution in wide:
        fan_out = convolution.out_channels * 9
        assert convolution.weight.var().item() * fan_out / 2 == pytest.approx(1, abs=0.03)
    logits = network.train()(torch.rand(8, 3, 32, 32) * 2 - 1)
    assert logits.isfinite().all() and logits.std() > 0.01


def test_a_block_that_widens_is_the_preactivation_formula() -> None:
    torch.manual_seed(0)
    block = build("wrn-10-1").eval().get_submodule("groups.1.block1")
    w = dict(block.named_parameters()) | dict(block.named_buffers())

    def active(f_BDhw: torch.Tensor, norm: str) -> torch.Tensor:
        mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return F.relu(F.batch_norm(f_BDhw, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"]))

    f_BDhw = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        first = active(f_BDhw, "norm1")
        second = active(F.conv2d(first, w["conv1.weight"], stride=2, padding=1), "norm2")
        expected = F.conv2d(first, w["shortcut.weight"], stride=2) + F.conv2d(second, w["conv2.weight"], padding=1)
        torch.testing.assert_close(block(f_BDhw), expected)
