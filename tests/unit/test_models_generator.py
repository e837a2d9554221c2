"""Generator and feature mixing: sizes of the released networks, wiring, and the algebra of the mix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hydramix_dist.config.schema import GeneratorNetworkSettings
from hydramix_dist.models.generator import Generator, mix_features
from hydramix_dist.models.layers import InstanceNorm, ReflectConv2d

SMALL = GeneratorNetworkSettings(side=32, width=4, blocks=2, mix_after="block1")


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_mask(B: int, K: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, K, side, side, generator=generator).softmax(dim=1)


def reconstruct(generator: Generator, x_BCHW: Tensor) -> Tensor:
    return generator.decode(generator.encode(x_BCHW))


def test_parameter_counts_are_those_of_the_released_networks() -> None:
    applied, skipped = (Generator(GeneratorNetworkSettings(decoder_blocks=wiring)) for wiring in ("apply", "skip"))
    assert parameters(applied.encoder) == 2_738_816
    assert parameters(applied.decoder) == 2_532_547
    assert parameters(skipped) == 2_912_067


@pytest.mark.parametrize("side", [64, 96])
def test_features_have_a_quarter_of_the_side_and_four_times_the_width(side: int) -> None:
    generator = Generator(GeneratorNetworkSettings(side=side)).eval()
    with torch.no_grad():
        f_BDhw = generator.encode(torch.zeros(1, 3, side, side))
        x_BCHW = generator.decode(f_BDhw)
    assert f_BDhw.shape == (1, 256, side // 4, side // 4)
    assert x_BCHW.shape == (1, 3, side, side)


@pytest.mark.parametrize("wiring", ["apply", "skip"])
@pytest.mark.parametrize("mix_after", GeneratorNetworkSettings(blocks=2, mix_after="stem").layer_names()[:-1])
def test_every_layer_can_be_the_cut_and_every_parameter_learns(mix_after: str, wiring: str) -> None:
    network = GeneratorNetworkSettings(side=32, width=4, blocks=2, mix_after=mix_after, decoder_blocks=wiring)
    torch.manual_seed(0)
    generator = Generator(network)
    x_BKCHW = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    f_NDhw = generator.encode(x_BKCHW.flatten(0, 1))
    assert f_NDhw.shape == (6, generator.feature_channels, generator.feature_side, generator.feature_side)
    mixed_BCHW = generator.decode(mix_features(f_NDhw.unflatten(0, (2, 3)), random_mask(2, 3, generator.feature_side)))
    assert mixed_BCHW.shape == (2, 3, 32, 32)
    mixed_BCHW.square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        # A norm cancels the bias before it, the head has none behind it.
        if not name.endswith("bias") or name == "decoder.head.bias":
            assert parameter.grad.abs().max() > 0, name


def test_blocks_of_the_decoder_shape_the_mix_only_where_they_are_applied() -> None:
    torch.manual_seed(0)
    applied = Generator(SMALL)
    skipped = Generator(SMALL.model_copy(update={"decoder_blocks": "skip"}))
    missing = skipped.load_state_dict(applied.state_dict(), strict=False)
    assert not missing.missing_keys
    assert {name.split(".")[1] for name in missing.unexpected_keys} == {"block2"}
    x_BCHW = torch.rand(1, 3, 32, 32) * 2 - 1
    assert not torch.allclose(reconstruct(applied, x_BCHW), reconstruct(skipped, x_BCHW))
    with torch.no_grad():  # a block whose second convolution is zero adds nothing: both wirings agree
        applied.decoder.block2.conv2.weight.zero_()
    torch.testing.assert_close(reconstruct(applied, x_BCHW), reconstruct(skipped, x_BCHW))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_is_reconstructed_alike_alone_and_in_a_batch_in_both_modes(batch: int) -> None:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    x_BCHW = torch.rand(batch, 3, 32, 32) * 2 - 1
    whole = reconstruct(generator, x_BCHW)
    torch.testing.assert_close(reconstruct(generator.eval(), x_BCHW[-1:]), whole[-1:], atol=1e-5, rtol=1e-5)
    assert whole.abs().max() <= 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bf16_networks_return_float32_images_near_the_float32_ones(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    x_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    exact = reconstruct(generator, x_BCHW)
    generator = generator.to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = reconstruct(generator, x_BCHW.contiguous(memory_format=memory_format))
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1


def test_instance_norm_equals_torchs_and_keeps_the_memory_format() -> None:
    x_BDhw = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    expected = nn.InstanceNorm2d(5)(x_BDhw)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y_BDhw = InstanceNorm()(x_BDhw.contiguous(memory_format=memory_format))
        torch.testing.assert_close(y_BDhw, expected)
        assert y_BDhw.is_contiguous(memory_format=memory_format)


def test_reflect_convolution_equals_torchs() -> None:
    ours = ReflectConv2d(3, 4, 7, bias=True)
    theirs = nn.Conv2d(3, 4, 7, padding=3, padding_mode="reflect")
    theirs.load_state_dict(ours.state_dict())
    x_BCHW = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW))


def test_two_images_are_fused_as_in_chimeramix() -> None:
    generator = torch.Generator().manual_seed(0)
    f_BKDhw = torch.randn(2, 2, 5, 4, 4, generator=generator)
    m_B1hw = torch.rand(2, 1, 4, 4, generator=generator)
    mixed = mix_features(f_BKDhw, torch.cat((m_B1hw, 1 - m_B1hw), dim=1))
    torch.testing.assert_close(mixed, f_BKDhw[:, 0] * m_B1hw + f_BKDhw[:, 1] * (1 - m_B1hw))


def test_a_mask_that_is_one_image_everywhere_gives_that_images_reconstruction() -> None:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    x_KCHW = torch.rand(3, 3, 32, 32) * 2 - 1
    f_KDhw = generator.encode(x_KCHW)
    side = generator.feature_side
    m_KKhw = torch.eye(3)[:, :, None, None].expand(3, 3, side, side)
    mixed = generator.decode(mix_features(f_KDhw.expand(3, *f_KDhw.shape), m_KKhw))
    torch.testing.assert_close(mixed, reconstruct(generator, x_KCHW), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(K=st.integers(1, 5), B=st.integers(1, 3), seed=st.integers(0, 2**16), data=st.data())
def test_permuting_images_with_their_mask_channels_changes_nothing(
    K: int, B: int, seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(K)))
    f_BKDhw = torch.randn(B, K, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    m_BKhw = random_mask(B, K, 4, seed)
    mixed = mix_features(f_BKDhw, m_BKhw)
    torch.testing.assert_close(mix_features(f_BKDhw[:, order], m_BKhw[:, order]), mixed)
    # A mix lies between the features it is made of.
    assert (mixed <= f_BKDhw.amax(dim=1) + 1e-5).all() and (mixed >= f_BKDhw.amin(dim=1) - 1e-5).all()


def test_gradient_reaches_each_image_where_the_mask_shows_it_and_the_mask_itself() -> None:
    f_BKDhw = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    m_BKhw = torch.zeros(1, 2, 4, 4)
    m_BKhw[:, 0, :2], m_BKhw[:, 1, 2:] = 1, 1
    m_BKhw.requires_grad_()
    mix_features(f_BKDhw, m_BKhw).sum().backward()
    assert f_BKDhw.grad is not None and m_BKhw.grad is not None
    torch.testing.assert_close(f_BKDhw.grad, m_BKhw.detach()[:, :, None].expand_as(f_BKDhw))
    torch.testing.assert_close(m_BKhw.grad, f_BKDhw.detach().sum(dim=2))


def test_shares_of_a_cell_stay_a_partition_under_bf16() -> None:
    """Features that are the same in all sources come out as they are, whatever the shares."""
    f_BDhw = torch.linspace(-3, 3, 2 * 4 * 5 * 5).view(2, 4, 5, 5).bfloat16()
    shares_BKhw = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    fused_BDhw = mix_features(f_BDhw[:, None].expand(-1, 3, -1, -1, -1), shares_BKhw)
    assert fused_BDhw.dtype == torch.bfloat16
    assert torch.equal(fused_BDhw, f_BDhw)
