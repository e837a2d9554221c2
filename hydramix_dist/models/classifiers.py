"""Classifiers by name: wide ResNets of our own, ResNet-50 from torchvision; always from scratch."""

from torch import nn

from hydramix_dist.config.schema import ClassifierSettings
from hydramix_dist.data.torchvision_compat import torchvision_models
from hydramix_dist.models.wide_resnet import WideResNet


def build_classifier(settings: ClassifierSettings, num_classes: int) -> nn.Module:
    """Return a freshly initialised network from x_BCHW in [-1, 1] to logits [B, num_classes].

    ResNet-50 has its standard stem and no dropout; no pretrained weights are ever loaded. Weights come from torch's
    own generator, which the caller seeds.
    """
    if settings.network == "resnet50":
        network: nn.Module = torchvision_models().resnet50(weights=None, num_classes=num_classes)
        return network
    depth, width = settings.network.removeprefix("wrn-").split("-")
    return WideResNet(int(depth), int(width), num_classes, settings.dropout)
