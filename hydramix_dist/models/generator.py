"""The generator: an encoder, a point where features of K images are fused, and a decoder.

It is one list of named layers (stem, down1.., block1.., up1.., head) cut after the layer `mix_after`: the layers up
to the cut are the encoder, the rest the decoder. No parameter depends on K, so a trained generator mixes any number.

Letters: B batch, K images in a mix, N views that mixes are made of, C image channels, H W pixels, D feature channels,
h w feature cells.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hydramix_dist.config.schema import GeneratorNetworkSettings
from hydramix_dist.models.layers import InstanceNorm, ReflectConv2d


class Generator(nn.Module):
    """Encoder and decoder of CycleGAN's type, sizes as in ChimeraMix at the default settings.

    With `decoder_blocks` "skip" the residual blocks after the cut are not built: the released code builds them, but
    runs its upsampling path on their input, so that they have neither influence nor gradient.
    """

    def __init__(self, settings: GeneratorNetworkSettings) -> None:
        super().__init__()
        names = settings.layer_names()
        cut = names.index(settings.mix_after) + 1
        encoder, decoder = names[:cut], names[cut:]
        if settings.decoder_blocks == "skip":
            decoder = [name for name in decoder if not name.startswith("block")]
        # The released decoder has no biases except in its head; before a norm they would be cancelled anyway.
        self.encoder = nn.Sequential(OrderedDict((name, _layer(name, settings, bias=True)) for name in encoder))
        self.decoder = nn.Sequential(OrderedDict((name, _layer(name, settings, bias=False)) for name in decoder))
        self.feature_channels: int = _channels(settings.mix_after, settings)
        self.feature_side: int = settings.side * settings.width // self.feature_channels

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Return features f_BDhw of images in [-1, 1], D = `feature_channels`, h = w = `feature_side`."""
        f_BDhw: Tensor = self.encoder(x_BCHW)
        return f_BDhw

    def decode(self, f_BDhw: Tensor) -> Tensor:
        """Return float32 images x_BCHW in [-1, 1], whatever the precision inside."""
        return torch.tanh(self.decoder(f_BDhw).float())

    def forward(self, x_NCHW: Tensor, sources_BK: Tensor, m_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions of all views, [N, C, H, W], and the mixes of them, [B, C, H, W].

        Decoded in one batch, each needed by a loss. Each view is encoded once, however many mixes it is in.
        """
        f_NDhw = self.encode(x_NCHW)
        f_BDhw = mix_features(sources_of(f_NDhw, sources_BK), m_BKhw)
        decoded = self.decode(torch.cat((f_NDhw, f_BDhw)))
        return decoded[: len(x_NCHW)], decoded[len(x_NCHW) :]


def mix_features(f_BKDhw: Tensor, m_BKhw: Tensor) -> Tensor:
    """Return features f_BDhw, at every cell the sum of the K images' features weighted by the mask.

    The mask sums to 1 over K at every cell; gradients flow to features and mask. At K=2 this is ChimeraMix's
    f_a * m + f_b * (1 - m); any K is our choice (`docs/method.md`).
    """
    # In the mask's own 32 bits: shares of a cell rounded to bf16 would no longer sum to 1 (off by up to 0.002).
    return (f_BKDhw * m_BKhw.unsqueeze(2)).sum(dim=1).to(f_BKDhw.dtype)


def sources_of(f_NDhw: Tensor, sources_BK: Tensor) -> Tensor:
    """Return f_BKDhw, the features of the K images that each mix is made of."""
    # Not f[sources]: the backward pass of index_select is some three times as fast.
    f_BKDhw: Tensor = f_NDhw.index_select(0, sources_BK.flatten()).unflatten(0, sources_BK.shape)
    return f_BKDhw


class ResidualBlock(nn.Module):
    """Input plus two normalised 3x3 convolutions, a ReLU between them, none after the sum."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = ReflectConv2d(channels, channels, 3, bias)
        self.conv2 = ReflectConv2d(channels, channels, 3, bias)
        self.norm = InstanceNorm()

    def forward(self, f_BDhw: Tensor) -> Tensor:
        """Return features of the same shape."""
        inner = torch.relu(self.norm(self.conv1(f_BDhw)))
        result: Tensor = f_BDhw + self.norm(self.conv2(inner))
        return result


def _layer(name: str, settings: GeneratorNetworkSettings, bias: bool) -> nn.Module:
    """Return the layer of that name; `bias` is for the convolutions that a norm follows."""
    channels = _channels(name, settings)
    if name == "stem":
        return _normed(ReflectConv2d(3, channels, 7, bias))
    if name.startswith("down"):
        return _normed(nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=bias))
    if name.startswith("block"):
        return ResidualBlock(channels, bias)
    if name.startswith("up"):
        return _normed(nn.ConvTranspose2d(channels * 2, channels, 2, stride=2, bias=bias))
    return ReflectConv2d(channels, 3, 7, bias=True)


def _normed(convolution: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(conv=convolution, norm=InstanceNorm(), relu=nn.ReLU(inplace=True)))


def _channels(name: str, settings: GeneratorNetworkSettings) -> int:
    """Return the channels after that layer (before it, for the head): they double as the side halves."""
    if name.startswith("down"):
        halvings = int(name.removeprefix("down"))
    elif name.startswith("block"):
        halvings = settings.downsamplings
    elif name.startswith("up"):
        halvings = settings.downsamplings - int(name.removeprefix("up"))
    else:
        halvings = 0
    return settings.width << halvings
