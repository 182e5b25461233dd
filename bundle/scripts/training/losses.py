"""What the lesion network is trained to reduce."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_WEIGHT = 100.0  # of a slice's pixels together, so that a few do not count as much as many
LEAST_LESION = 4.0  # weight of a slice's lesions, from which on their overlap counts
SMOOTHNESS = 5.0  # pixels, in numerator and denominator of Dice: small lesions are not all or nothing


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
    error = ((healthy - target[:, :-3]).square() * brain).sum() / (brain.sum().clamp(min=1) * healthy.shape[1])
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
    """Mean of the values (N,) that count."""
    return (values * counts).sum() / counts.sum().clamp(min=1)
