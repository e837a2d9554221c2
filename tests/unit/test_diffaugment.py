"""Differentiable augmentation: against a literal reference, keyed by sample, and open to gradients."""

import pytest
import torch
from torch import Tensor

from hydramix_dist.training.diffaugment import DiffAugment, draw_augmentation

UNCHANGED = [0.5, 0.5, 0.5]  # no brightness, factors of 1


def images(B: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(B, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_the_book(x_CHW: Tensor, u_5: list[float]) -> Tensor:
    """One image, step by step: brightness, saturation, contrast, then the move by slices."""
    x_CHW = x_CHW + (u_5[0] - 0.5)
    grey_1HW = x_CHW.mean(dim=0, keepdim=True)
    x_CHW = (x_CHW - grey_1HW) * (u_5[1] * 2) + grey_1HW
    x_CHW = (x_CHW - x_CHW.mean()) * (u_5[2] + 0.5) + x_CHW.mean()
    side = x_CHW.shape[-1]
    reach = side // 8
    down, right = (int(u * (2 * reach + 1)) - reach for u in u_5[3:])
    framed = torch.zeros(3, side + 2 * reach, side + 2 * reach)
    framed[:, reach + down : reach + down + side, reach + right : reach + right + side] = x_CHW
    return framed[:, reach : reach + side, reach : reach + side]


@pytest.mark.parametrize("side", [32, 64])
def test_equals_the_steps_written_out_for_each_image(side: int) -> None:
    x_BCHW = images(12, side)
    draw = draw_augmentation(3, "test", range(12))
    expected = torch.stack([by_the_book(x, u) for x, u in zip(x_BCHW, draw.uniforms.tolist(), strict=True)])
    torch.testing.assert_close(draw.apply(x_BCHW), expected, atol=1e-5, rtol=1e-5)


def test_a_moved_image_keeps_its_pixels_exactly_and_lets_mid_grey_in() -> None:
    x_BCHW = images(2)
    moved = DiffAugment(torch.tensor([[*UNCHANGED, 0.999, 0.5], [*UNCHANGED, 0.5, 0.0]], dtype=torch.float64)).apply(
        x_BCHW
    )
    assert (moved[0, :, :4] == 0).all() and (moved[1, :, :, -4:] == 0).all()
    torch.testing.assert_close(moved[0, :, 4:], x_BCHW[0, :, :-4])
    torch.testing.assert_close(moved[1, :, :, :-4], x_BCHW[1, :, :, 4:])


def test_an_image_is_changed_alike_alone_and_in_any_batch() -> None:
    x_BCHW = images(5)
    whole = draw_augmentation(7, "test", [4, 9, 2, 30, 8]).apply(x_BCHW)
    for i, number in enumerate([4, 9, 2, 30, 8]):
        alone = draw_augmentation(7, "test", [number]).apply(x_BCHW[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i])


def test_every_ingredient_varies_over_samples_and_with_seed_and_purpose() -> None:
    base = draw_augmentation(0, "a", range(200)).uniforms
    assert base.shape == (200, 5)
    assert (base.std(dim=0) > 0.2).all()
    for other in (draw_augmentation(1, "a", range(200)), draw_augmentation(0, "b", range(200))):
        assert not torch.equal(base, other.uniforms)


def test_gradients_flow_to_the_images_and_stay_inside_each() -> None:
    x_BCHW = images(3).requires_grad_()
    draw_augmentation(0, "test", range(3)).apply(x_BCHW)[1].square().sum().backward()
    assert x_BCHW.grad is not None
    assert x_BCHW.grad[1].abs().max() > 0
    assert (x_BCHW.grad[[0, 2]] == 0).all()


def test_result_is_float32_and_exact_inside_autocast() -> None:
    x_BCHW = images(2)
    draw = draw_augmentation(0, "test", range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = draw.apply(x_BCHW)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, draw.apply(x_BCHW))
    assert draw.apply(x_BCHW.bfloat16()).dtype == torch.float32
