"""The discriminator: judges overlapping patches of an image (PatchGAN; ChimeraMix's sizes at the default width).

Letters: B batch, C image channels, H W pixels, h w patches.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from hydramix_dist.config.schema import DiscriminatorSettings
from hydramix_dist.models.layers import InstanceNorm


class Discriminator(nn.Module):
    """Four stride-2 convolutions and a scoring one; unconditional, one scale. Needs sides of at least 32 pixels."""

    def __init__(self, settings: DiscriminatorSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i in range(4):
            width = settings.width * 2**i
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            if i > 0:
                layers.append(InstanceNorm())
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.score = nn.Conv2d(channels, 1, 4)
        self._squeezed = settings.score == "sigmoid"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a float32 score for each patch, s_Bhw with h = H / 16, of images in [-1, 1].

        It is trained towards 1 on real images and towards 0 on mixed ones.
        "sigmoid" scores lie in (0, 1) as in ChimeraMix, and lose their gradient once the discriminator is sure;
        "linear" ones are unbounded (our choice).
        """
        f_BDhw = self.features(x_BCHW)
        # Two zeros left and top, one right and bottom: the kernel of four then keeps the number of patches.
        s_Bhw: Tensor = self.score(F.pad(f_BDhw, (2, 1, 2, 1))).squeeze(1).float()
        return s_Bhw.sigmoid() if self._squeezed else s_Bhw
