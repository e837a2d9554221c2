"""Batch norm whose statistics are those of the whole batch over all processes of a training, on CPUs and on GPUs.

torch has the like for GPUs alone. Each layer costs one small collective forward and one backward: 2 C + 1 and 2 C
numbers a process.

Legend: B images of this process, C channels, H W pixels, R ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def synchronised(network: nn.Module) -> nn.Module:
    """Return the network, each `nn.BatchNorm2d` in it made a `SynchronisedBatchNorm2d`; weights and names stay.

    Raises ValueError for a batch norm without weights, running statistics or momentum: no network here has such.
    """
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            if not module.affine or not module.track_running_stats or module.momentum is None:
                raise ValueError(f"batch norm '{name}' needs weights, running statistics and a momentum")
            # The class is all that differs: parameters, buffers, their device and names need no copying.
            module.__class__ = SynchronisedBatchNorm2d
    return network


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that while training takes mean and variance over the images of all ranks.

    Gradients are exact for any loss that is a sum over ranks: each rank gets its part of those of weight and bias, and
    the whole one of its own images. In evaluation mode, or with one process, it is `nn.BatchNorm2d`.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised images: same shape, type and memory format; statistics are kept in fp32.

        While training, every rank calls it, with at least one image; the numbers of images may differ.
        """
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x_BCHW)
        mean_C, variance_C, count = _statistics(x_BCHW)
        self._keep(mean_C, variance_C * (count / (count - 1)))  # every rank has an image: the count is at least R
        y_BCHW: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            x_BCHW, self.weight, self.bias, mean_C, variance_C, count, self.eps
        )
        return y_BCHW

    @torch.no_grad()
    def _keep(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """Move the running statistics towards these."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


@torch.no_grad()
def _statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel over all ranks, and the number of values they are taken over.

    Ranks are combined by Chan's formula: a sum of squares minus a squared sum would lose the variance of channels far
    from zero.
    """
    channels = x_BCHW.shape[1]
    # torch's kernel takes bf16 images to fp32 statistics where the running ones it also wants are fp32.
    kind = torch.promote_types(x_BCHW.dtype, torch.float32)
    unused_2C = x_BCHW.new_zeros(2, channels, dtype=kind)
    mean_C, variance_C = torch.batch_norm_update_stats(x_BCHW, unused_2C[0], unused_2C[1], 0.0)
    count_1 = mean_C.new_full((1,), x_BCHW.numel() // channels)

    own = torch.cat((mean_C, variance_C, count_1))
    all_R = own.new_empty(dist.get_world_size() * own.numel())
    dist.all_gather_single(all_R, own)
    mean_RC, variance_RC, count_R1 = all_R.view(-1, own.numel()).split((channels, channels, 1), dim=1)

    count = count_R1.sum()
    share_R1 = count_R1 / count
    mean_C = (share_R1 * mean_RC).sum(0)
    variance_C = (share_R1 * (variance_RC + (mean_RC - mean_C).square())).sum(0)
    return mean_C, variance_C, count


class _Normalise(torch.autograd.Function):
    """Normalisation by statistics of all ranks, whose gradient reaches the images of all ranks.

    As torch's own kernel it keeps its input, not its output, for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        variance_C: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, variance_C, count)
        ctx.eps = eps
        return F.batch_norm(x_BCHW, mean_C, variance_C, weight_C, bias_C, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, variance_C, count = ctx.saved_tensors
        # With fixed statistics: what the kernel of the evaluation mode gives, and both sums over this rank's images.
        inverse_C = (variance_C + ctx.eps).rsqrt()
        fixed_BCHW, by_weight_C, by_bias_C = torch.ops.aten.native_batch_norm_backward(
            grad_BCHW, x_BCHW, weight_C, mean_C, variance_C, mean_C, inverse_C, False, ctx.eps, [True, True, True]
        )
        # What comes through the statistics: the mean of the gradient, and its part along the normalised images z,
        # over all ranks. z times a factor plus an offset is again a batch norm with fixed statistics.
        sums_2C = torch.stack((by_weight_C, by_bias_C))
        dist.all_reduce(sums_2C)
        along_C, offset_C = sums_2C * (weight_C * inverse_C / count)
        through_BCHW = F.batch_norm(x_BCHW, mean_C, variance_C, along_C, offset_C, eps=ctx.eps)
        return fixed_BCHW.sub_(through_BCHW), by_weight_C, by_bias_C, None, None, None, None
