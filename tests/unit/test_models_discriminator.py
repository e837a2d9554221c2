"""Discriminator: the released sizes, what a score depends on, and both kinds of score."""

import pytest
import torch

from hydramix_dist.config.schema import DiscriminatorSettings
from hydramix_dist.models.discriminator import Discriminator


def test_parameter_count_is_that_of_the_released_network() -> None:
    assert sum(p.numel() for p in Discriminator(DiscriminatorSettings()).parameters()) == 2_764_737


@pytest.mark.parametrize(("side", "patches"), [(32, 2), (64, 4), (96, 6)])
def test_one_score_for_each_sixteenth_of_the_side(side: int, patches: int) -> None:
    discriminator = Discriminator(DiscriminatorSettings(width=4))
    assert discriminator(torch.zeros(1, 3, side, side)).shape == (1, patches, patches)


def test_sigmoid_scores_are_the_squeezed_linear_ones() -> None:
    linear = Discriminator(DiscriminatorSettings(width=4, score="linear"))
    squeezed = Discriminator(DiscriminatorSettings(width=4, score="sigmoid"))
    squeezed.load_state_dict(linear.state_dict())
    x_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(squeezed(x_BCHW), linear(x_BCHW).sigmoid())


def test_scores_of_a_batch_are_those_of_its_images_alone() -> None:
    """Real and mixed images may then share one pass."""
    discriminator = Discriminator(DiscriminatorSettings(width=4, score="linear"))
    x_BCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    alone = torch.cat([discriminator(x_1CHW) for x_1CHW in x_BCHW.split(1)])
    torch.testing.assert_close(discriminator(x_BCHW), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("score", ["sigmoid", "linear"])
def test_every_parameter_and_the_image_get_a_gradient_also_under_bf16(score: str) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorSettings(width=4, score=score))
    x_BCHW = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s_Bhw = discriminator(x_BCHW)
    assert s_Bhw.dtype == torch.float32
    s_Bhw.square().mean().backward()
    assert x_BCHW.grad is not None and x_BCHW.grad.abs().max() > 0
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.endswith("weight"):
            assert parameter.grad.abs().max() > 0, name
