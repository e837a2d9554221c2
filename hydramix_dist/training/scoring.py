"""A classifier's answers on many images, in batches of fixed size.

Legend: N images, B images of a batch, C channels, H W pixels.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hydramix_dist.data.held_out import HeldOut
from hydramix_dist.models.pixels import to_float
from hydramix_dist.training.group import Group


@torch.no_grad()  # not inference_mode: weights that DeepSpeed gathers inside it could not be trained any more
def predict(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return class probabilities, fp32 [N, classes] on the CPU, for batches of uint8 images at the network's side."""
    network.eval()
    return torch.cat([network(to_float(images_BCHW.to(device))).float().softmax(1).cpu() for images_BCHW in batches])


def predict_together(network: nn.Module, held_out: HeldOut, group: Group) -> Tensor:
    """Return class probabilities, fp32 [N, classes], on every rank, each rank having computed its part."""
    count = len(held_out.labels_N)
    part = predict(network, held_out.batches(part_of(count, group.rank, group.world_size)), group.device)
    return group.gather(part.to(group.device)).flatten(0, 1)[:count].cpu()


def part_of(count: int, rank: int, world_size: int) -> Tensor:
    """Return the positions that a rank scores: contiguous, equally many on every rank, so some have the last one again.

    A sharded network must be called equally often on all ranks. The ranks' parts in a row begin with all positions in
    order.
    """
    each = -(-count // world_size)
    return (torch.arange(each) + rank * each).clamp(max=count - 1)
