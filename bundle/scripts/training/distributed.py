"""Several processes: one batch over all of them in training, a share of the data for each in all else.

What is called joint here is what one process with all the slices would have: its batch, its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.engines import PrepareBatch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without a gradient; collective."""
    return cast(Tensor, idist.all_reduce(value.detach().clone())) / idist.get_world_size()


def _gathered(value: Tensor) -> Tensor:
    """The tensors of all processes, joined along the first axis in the order of their ranks; collective."""
    return cast(Tensor, idist.all_gather(value))


def joint_loss(prediction: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss of the joint batch: its value on every process, with the gradient of this process's part.

    Args:
        prediction: This process's part of the batch, as ``loss`` takes it.
        target: The same.
        loss: A mean over slices, or one whose denominators are joint, as `training.masked_likelihood`.
    """
    own = loss(prediction, target)
    return own + (mean_over_ranks(own) - own.detach())


class PrepareJointBatch(PrepareBatch):
    """Prepare the joint batch on every process, and keep this process's slices.

    So each slice is corrupted as in one process, and no two processes draw the same. Every process pays for the
    preparation of the joint batch; docs/many_gpus.md has the price, and how to do without.

    Args:
        prepare: Prepares a batch; what it draws depends on the whole batch.
    """

    def __init__(self, prepare: PrepareBatch):
        self.prepare = prepare

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give inputs and targets of this process's slices, every ``world_size``-th of the joint batch."""
        rank, ranks = idist.get_rank(), idist.get_world_size()
        joint = {}
        for key, value in batchdata.items():
            gathered = _gathered(value.to(device, non_blocking=non_blocking))
            joint[key] = gathered.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(0, 1)
        inputs, target = self.prepare(joint, device, non_blocking, **kwargs)
        return inputs[rank::ranks], target[rank::ranks]


class _JointNormalization(torch.autograd.Function):
    """Normalize by the mean and variance of the joint batch, through which the gradients of all processes go."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, variance)
        ctx.epsilon = epsilon
        return F.batch_norm(features, mean, variance, weight, bias, training=False, eps=epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, variance = ctx.saved_tensors
        direct, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, features, weight, mean, variance, None, None, False, ctx.epsilon, [True, True, True]
        )
        pixels = features.numel() // features.shape[1]
        by_mean, by_deviation = mean_over_ranks(torch.stack([to_bias, to_weight])).div(pixels).unbind()
        scale = weight * (variance + ctx.epsilon).rsqrt()
        indirect = F.batch_norm(features, mean, variance, scale * by_deviation, scale * by_mean, eps=ctx.epsilon)
        return direct - indirect, to_weight, to_bias, None, None, None


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, which are of the same size, on GPUs and CPUs alike.

    Torch's `SyncBatchNorm` does the same on GPUs alone, so what trains there could not be tested without several.
    """

    # Batch norm in general may go without statistics and momentum; that of the networks has both.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, features: Tensor) -> Tensor:
        ranks = idist.get_world_size()
        if not self.training or ranks == 1:
            return super().forward(features)
        with torch.no_grad():
            affine = (self.weight, self.bias)  # float32, and with them the statistics of features in bfloat16
            _, own_mean, inverse = torch.native_batch_norm(features, *affine, None, None, True, 0.0, self.eps)
            own = torch.stack([own_mean, inverse.pow(-2) - self.eps])
            means, variances = _gathered(own[None]).unbind(1)
            mean = means.mean(dim=0)
            variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
            number = ranks * features.numel() / features.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (number / (number - 1)), self.momentum)
        return _JointNormalization.apply(features, self.weight, self.bias, mean, variance, self.eps)


def _join_batch_norm(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d  # the same parameters and statistics, another forward pass


def replicate(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Let the processes train one network together: the same weights, joint batch norm, the mean of their gradients.

    Args:
        network: The network in training, on ``device``; its batch norm is replaced in place.
        device: The GPU of this process, or the CPU.

    Returns:
        The module that a trainer calls; parameters and state dict stay those of ``network``.
    """
    _join_batch_norm(network)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
