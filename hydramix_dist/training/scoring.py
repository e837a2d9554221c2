"""A classifier's answers on many images, in batches of fixed size.

Legend: N images, C channels, H W pixels.
"""

import torch
from torch import Tensor, nn

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.models.pixels import to_float
from hydramix_dist.training.loop import autocast

BATCH = 250


@torch.inference_mode()
def predict(network: nn.Module, images_NCHW: Tensor, runtime: RuntimeSettings, device: torch.device) -> Tensor:
    """Return class probabilities, fp32 [N, classes] on the CPU, for uint8 images at the network's side."""
    network.eval()
    parts = []
    for images_BCHW in images_NCHW.split(BATCH):
        with autocast(runtime, device):
            logits = network(to_float(images_BCHW.to(device)))
        parts.append(logits.float().softmax(1).cpu())
    return torch.cat(parts)
