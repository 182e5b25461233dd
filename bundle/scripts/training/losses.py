"""What the networks are trained to reduce."""

from __future__ import annotations

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.default import LARGEST_LOG_VARIANCE, LEAST_LOG_VARIANCE
from .distributed import mean_over_ranks

LEAST_WEIGHT = 100.0  # of a slice's pixels together, so that a few do not count as much as many
LEAST_LESION = 4.0  # weight of a slice's lesions, from which on their overlap counts
SMOOTHNESS = 5.0  # pixels, in numerator and denominator of Dice: small lesions are not all or nothing


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


def lesion_loss(
    prediction: Tensor,
    target: Tensor,
    healthy_weight: float = 4.0,
    lesion_weight: float = 2.0,
    overlap_weight: float = 0.5,
) -> Tensor:
    """Loss of the predicted healthy slice and of the lesions: squared error, cross entropy and soft Dice.

    Args:
        prediction: Healthy slice and logit of lesion (N, M + 1, H, W).
        target: What `PrepareLesionBatch` asks for, (N, M + 3, H, W).
        healthy_weight: Weight of the squared error of the healthy slice.
        lesion_weight: Weight of the cross entropy of the lesions.
        overlap_weight: Weight of their soft Dice.

    Returns:
        The loss, a scalar.
    """
    healthy, logit = prediction[:, :-1], prediction[:, -1:]
    label, weight, brain = target[:, -3:].split(1, dim=1)
    error = masked_error(healthy, torch.cat([target[:, :-3], brain, brain], dim=1))
    lesions = lesion_weight * cross_entropy(logit, label, weight) + overlap_weight * overlap_error(logit, label, weight)
    return healthy_weight * error + lesions


def cross_entropy(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Mean over slices of the weighted cross entropy of their pixels; slices without weight do not count."""
    loss = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    total = weight.flatten(1).sum(dim=1)
    each = (loss * weight).flatten(1).sum(dim=1) / total.clamp(min=LEAST_WEIGHT)
    return _mean_over(each, total > 0)


def overlap_error(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Mean over slices with lesions of 1 - soft Dice, over the pixels that have weight."""
    counts = (weight > 0).to(logit.dtype)
    probability, truth = torch.sigmoid(logit) * counts, label * counts
    both, one, other = (values.flatten(1).sum(dim=1) for values in (probability * truth, probability, truth))
    dice = (2 * both + SMOOTHNESS) / (one + other + SMOOTHNESS)
    return _mean_over(1 - dice, (label * weight).flatten(1).sum(dim=1) > LEAST_LESION)


def _mean_over(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the values (N,) that count; in several processes over those of all."""
    number = mean_over_ranks(counts.sum().to(values.dtype)).clamp(min=1 / idist.get_world_size())
    return (values * counts).sum() / number
