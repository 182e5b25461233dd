"""What the networks are trained to reduce."""

from __future__ import annotations

import ignite.distributed as idist
import torch
from torch import Tensor

from ..method.default import LARGEST_LOG_VARIANCE, LEAST_LOG_VARIANCE
from .distributed import mean_over_ranks


def masked_error(prediction: Tensor, target: Tensor, visible_weight: float = 0.1) -> Tensor:
    """Loss of a predicted mean alone: its squared error.

    Args:
        prediction: Mean (N, M, H, W).
        target: Slices, spatial mask and brain mask (N, M + 2, H, W).
        visible_weight: Weight of the squared error where nothing is hidden.

    Returns:
        The loss, a scalar.
    """
    error = (prediction - target[:, :-2]).square()
    return _hidden_and_visible(error, error, target, visible_weight)


def _hidden_and_visible(hidden_loss: Tensor, visible_loss: Tensor, target: Tensor, visible_weight: float) -> Tensor:
    """Mean of one loss over the hidden pixels, and of another over the rest of the brain times a weight.

    In several processes the pixels are those of all, so that the mean over the processes is the loss of all slices.
    """
    hidden, brain = target[:, -2:-1], target[:, -1:]
    pixels = mean_over_ranks(torch.stack([hidden.sum(), brain.sum()])).clamp(min=1 / idist.get_world_size())
    masked = (hidden_loss * hidden).sum() / pixels[0]
    visible = (visible_loss * (brain - hidden)).sum() / pixels[1]
    return (masked + visible_weight * visible) / hidden_loss.shape[1]


def masked_likelihood(prediction: Tensor, target: Tensor, visible_weight: float = 0.1) -> Tensor:
    """Loss of predicted mean and log-variance: squared error of the mean, Gaussian likelihood of the variance.

    The mean learns from its squared error alone; each pixel's likelihood is weighted by its variance, up to 1, so
    that the variance of well-known pixels does not drown the rest (beta-weighted likelihood, Seitzer et al. 2022,
    with beta = 1).

    Args:
        prediction: Mean and log-variance (N, 2 M, H, W).
        target: Slices, spatial mask and brain mask (N, M + 2, H, W).
        visible_weight: Weight of the squared error where nothing is hidden.

    Returns:
        The loss, a scalar.
    """
    mean, log_variance = prediction.chunk(2, dim=1)
    log_variance = log_variance.clamp(LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
    error = (mean - target[:, :-2]).square()
    likelihood = error.detach() * torch.exp(-log_variance) + log_variance
    likelihood = likelihood * log_variance.detach().exp().clamp(max=1)
    return _hidden_and_visible(error + 0.5 * likelihood, error, target, visible_weight)
