"""What any method has to beat: the intensity itself as the anomaly score."""

from __future__ import annotations

import torch
from torch import Tensor

from .scores import gaussian_smooth

REFERENCE_SIZE = 128


def zscore(image: Tensor, brain_mask: Tensor) -> Tensor:
    """Intensity of every slice in standard deviations from the mean of its own brain, 0 outside the brain.

    Args:
        image: Slices (N, M, H, W), float32.
        brain_mask: Brain pixels (N, 1, H, W), bool.

    Returns:
        (N, M, H, W); all 0 where the brain is empty or constant.
    """
    brain = brain_mask.to(image.dtype)
    pixels = brain.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    centered = (image - (image * brain).sum(dim=(2, 3), keepdim=True) / pixels) * brain
    deviation = (centered.square().sum(dim=(2, 3), keepdim=True) / pixels).sqrt()
    return torch.where(deviation > 1e-6, centered / deviation.clamp(min=1e-6), torch.zeros_like(centered))


class ZScoreBaseline:
    """Score every brain pixel by how bright it is for its slice; several modalities are averaged.

    Args:
        sigma: Gaussian smoothing of the scores inside the brain, in pixels of a 128 x 128 slice; 0 = none.
        absolute: Whether a dark pixel is as anomalous as a bright one; False looks for bright lesions alone.
    """

    def __init__(self, sigma: float = 0.0, absolute: bool = False):
        self.sigma = sigma
        self.absolute = absolute

    def __call__(self, image: Tensor, brain_mask: Tensor) -> Tensor:
        """Score slices (N, M, H, W) with their brain pixels (N, 1, H, W), bool: (N, 1, H, W), 0 outside."""
        sigma = self.sigma * max(image.shape[-2:]) / REFERENCE_SIZE
        scores = [
            gaussian_smooth(modality, brain_mask, sigma) for modality in zscore(image, brain_mask).split(1, dim=1)
        ]
        stacked = torch.cat(scores, dim=1)
        return (stacked.abs() if self.absolute else stacked).mean(dim=1, keepdim=True)
