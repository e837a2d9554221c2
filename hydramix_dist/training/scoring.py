"""A classifier's answers on many images, in batches of fixed size.

Legend: N images, C channels, H W pixels.
"""

import torch
from torch import Tensor, nn

from hydramix_dist.models.pixels import to_float
from hydramix_dist.training.group import Group

BATCH = 250


@torch.no_grad()  # not inference_mode: weights that DeepSpeed gathers inside it could not be trained any more
def predict(network: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
    """Return class probabilities, fp32 [N, classes] on the CPU, for uint8 images at the network's side."""
    network.eval()
    parts = [
        network(to_float(images_BCHW.to(device))).float().softmax(1).cpu() for images_BCHW in images_NCHW.split(BATCH)
    ]
    return torch.cat(parts)


def predict_together(network: nn.Module, images_NCHW: Tensor, group: Group) -> Tensor:
    """Return the same as `predict`, on every rank, each rank having computed its part of the images."""
    count, each = len(images_NCHW), -(-len(images_NCHW) // group.world_size)
    # Every rank takes equally many, some twice at the end: a sharded network is called equally often on all ranks.
    mine = (torch.arange(each) * group.world_size + group.rank) % count
    part = predict(network, images_NCHW if group.world_size == 1 else images_NCHW[mine], group.device)
    return group.gather(part.to(group.device)).transpose(0, 1).flatten(0, 1)[:count].cpu()
