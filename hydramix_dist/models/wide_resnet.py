"""Wide ResNet (Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016), laid out as in ChimeraMix.

Letters: B batch, C image channels, H W pixels, D feature channels, h w feature cells.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn


class WideResNet(nn.Module):
    """Three groups of pre-activated blocks at full, half and quarter side, then the mean over cells and a linear layer.

    `depth` counts convolutions: 6n + 4 for n blocks a group; `width` multiplies the groups' 16, 32 and 64 channels.
    """

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 4) // 6  # the settings refuse other depths
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = [16, 16 * width, 32 * width, 64 * width]
        groups = [
            _group(channels[i], channels[i + 1], blocks, stride=1 if i == 0 else 2, dropout=dropout) for i in range(3)
        ]
        self.groups = nn.Sequential(*groups)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        self._initialise()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return class scores (logits), shape [B, number of classes], of images in [-1, 1] of any side."""
        f_BDhw = torch.relu_(self.norm(self.groups(self.stem(x_BCHW))))
        logits: Tensor = self.head(f_BDhw.mean(dim=(2, 3)))
        return logits

    def _initialise(self) -> None:
        """Fill convolutions with He's normal draw over their outputs, and clear the linear layer's bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.head.bias)


class _Block(nn.Module):
    """Twice norm, ReLU, 3x3 convolution, dropout before the second; added to the input.

    Where the channels change, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, f_BDhw: Tensor) -> Tensor:
        active = torch.relu_(self.norm1(f_BDhw))
        inner = torch.relu_(self.norm2(self.conv1(active)))
        straight = f_BDhw if self.shortcut is None else self.shortcut(active)
        result: Tensor = straight + self.conv2(self.dropout(inner))
        return result


def _group(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Module:
    named: OrderedDict[str, nn.Module] = OrderedDict(
        (f"block{i + 1}", _Block(out_channels if i else in_channels, out_channels, 1 if i else stride, dropout))
        for i in range(blocks)
    )
    return nn.Sequential(named)
