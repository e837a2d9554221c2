"""Losses against literal references written here, and the promises of each term."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hydramix_dist.config.schema import LossSettings
from hydramix_dist.errors import UserError
from hydramix_dist.training.losses import (
    adversarial_loss,
    discriminator_loss,
    laplacian_loss,
    perceptual_loss,
    reconstruction_loss,
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def blurred(x_BCHW: Tensor, factor: float) -> Tensor:
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    kernel = (torch.outer(row, row) * factor / 256).expand(x_BCHW.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect"), kernel, groups=x_BCHW.shape[1])


def laplacian_by_the_book(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Two whole pyramids, step by step as the formula says, compared level by level."""
    total = torch.zeros(())
    for _ in range(3):
        details = []
        smaller = []
        for x_BCHW in (a_BCHW, b_BCHW):
            down = blurred(x_BCHW, 1)[..., ::2, ::2]
            up = torch.zeros_like(x_BCHW)
            up[..., ::2, ::2] = down
            details.append(x_BCHW - blurred(up, 4))
            smaller.append(down)
        total = total + (details[0] - details[1]).abs().mean()
        a_BCHW, b_BCHW = smaller
    return total


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (96, 96)])
def test_laplacian_loss_and_its_gradient_equal_the_formula(height: int, width: int) -> None:
    a, b = images(2, 3, height, width), images(2, 3, height, width, seed=1)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    loss, expected = laplacian_loss(ours, b), laplacian_by_the_book(theirs, b)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert ours.grad is not None and theirs.grad is not None
    # L1: where a detail is almost 0, rounding may turn its sign, so a few pixels may differ.
    close = torch.isclose(ours.grad, theirs.grad, atol=1e-7, rtol=1e-3)
    assert close.float().mean() > 0.99


def test_laplacian_loss_does_not_depend_on_the_memory_format() -> None:
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    torch.testing.assert_close(laplacian_loss(a.contiguous(memory_format=torch.channels_last), b), laplacian_loss(a, b))


@settings(deadline=None, max_examples=20)
@given(offset=st.floats(-1, 1, width=32), side=st.sampled_from([16, 32, 64]), seed=st.integers(0, 99))
def test_laplacian_loss_is_zero_for_equal_images_and_blind_to_a_constant_offset(
    offset: float, side: int, seed: int
) -> None:
    x = images(1, 3, side, side, seed=seed)
    assert laplacian_loss(x, x) == 0
    assert laplacian_loss(x + offset, x) < 1e-5
    assert laplacian_loss(x, images(1, 3, side, side, seed=seed + 1)) > 0.1


@pytest.mark.parametrize(("height", "width"), [(36, 32), (32, 30), (8, 8)])
def test_laplacian_loss_refuses_sides_it_cannot_halve_three_times(height: int, width: int) -> None:
    x = images(1, 3, height, width)
    with pytest.raises(UserError, match=f"{height}x{width}.*divisible by 8"):
        laplacian_loss(x, x)


def test_total_at_two_images_is_chimeramixs() -> None:
    recon_BKCHW, x_BKCHW = images(4, 2, 3, 32, 32), images(4, 2, 3, 32, 32, seed=1)
    score_Bhw = images(4, 2, 2, seed=2).sigmoid()
    weights = LossSettings()
    total = (
        weights.reconstruction * reconstruction_loss(recon_BKCHW.flatten(0, 1), x_BKCHW.flatten(0, 1))
        + weights.perceptual * perceptual_loss(recon_BKCHW.flatten(0, 1), x_BKCHW.flatten(0, 1))
        + weights.adversarial * adversarial_loss(score_Bhw)
    )
    (recon_a, recon_b), (a, b) = recon_BKCHW.unbind(1), x_BKCHW.unbind(1)
    expected = (
        1000 * (F.mse_loss(recon_a, a) + F.mse_loss(recon_b, b))
        + laplacian_by_the_book(recon_a, a)
        + laplacian_by_the_book(recon_b, b)
        + F.mse_loss(score_Bhw, torch.ones_like(score_Bhw))
    )
    torch.testing.assert_close(total, expected)


@settings(deadline=None, max_examples=20)
@given(K=st.integers(1, 5), B=st.integers(1, 3), seed=st.integers(0, 99))
def test_image_terms_are_twice_the_mean_over_the_images_whatever_k(K: int, B: int, seed: int) -> None:
    recon_BKCHW, x_BKCHW = images(B, K, 3, 16, 16, seed=seed), images(B, K, 3, 16, 16, seed=seed + 100)
    recon_NCHW, x_NCHW = recon_BKCHW.flatten(0, 1), x_BKCHW.flatten(0, 1)
    pairs = list(zip(recon_BKCHW.unbind(1), x_BKCHW.unbind(1), strict=True))
    squares = sum((F.mse_loss(recon, x) for recon, x in pairs), torch.zeros(()))
    details = sum((laplacian_by_the_book(recon, x) for recon, x in pairs), torch.zeros(()))
    torch.testing.assert_close(reconstruction_loss(recon_NCHW, x_NCHW), 2 / K * squares)
    torch.testing.assert_close(perceptual_loss(recon_NCHW, x_NCHW), 2 / K * details)


def test_adversarial_losses_vanish_at_their_targets_and_oppose_each_other() -> None:
    ones, zeros = torch.ones(2, 2, 2), torch.zeros(2, 2, 2)
    assert adversarial_loss(ones) == 0
    assert discriminator_loss(ones, zeros) == 0
    assert adversarial_loss(zeros) == 1
    assert discriminator_loss(zeros, ones) == 2
    assert discriminator_loss(ones, torch.full((2, 2, 2), 0.5)) == 0.25


def test_terms_are_computed_in_32_bits_inside_autocast() -> None:
    recon, x, score = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1), images(2, 2, 2, seed=2)

    def terms() -> list[Tensor]:
        return [
            reconstruction_loss(recon, x),
            perceptual_loss(recon, x),
            adversarial_loss(score),
            discriminator_loss(score, -score),
        ]

    plain = terms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = terms()
    for a, b in zip(plain, inside, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)
    assert perceptual_loss(recon.bfloat16(), x).dtype == torch.float32
    assert adversarial_loss(score.bfloat16()).dtype == torch.float32


def test_a_loss_first_evaluated_under_inference_mode_still_trains_later() -> None:
    side = 88  # used by no other test: its matrices are made here
    with torch.inference_mode():
        laplacian_loss(images(1, 3, side, side), images(1, 3, side, side, seed=1))
    x = images(1, 3, side, side).requires_grad_()
    laplacian_loss(x, images(1, 3, side, side, seed=1)).backward()
    assert x.grad is not None and x.grad.abs().max() > 0
