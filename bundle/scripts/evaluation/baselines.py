"""What any method has to beat: the intensity itself as the anomaly score."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..common.fields import blur_inside
from ..method.scores import gaussian_smooth
from .samples import REFERENCE_SIZE, SLICES_AT_ONCE, Sample


def zscore(image: Tensor, brain_mask: Tensor) -> Tensor:
    """Intensity of every slice in standard deviations from the mean of its own brain, 0 outside the brain.

    Slices are (N, M, H, W), the mask (N, 1, H, W), bool. All is 0 where a brain is empty or constant.
    """
    brain = brain_mask.to(image.dtype)
    pixels = brain.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    centered = (image - (image * brain).sum(dim=(2, 3), keepdim=True) / pixels) * brain
    deviation = (centered.square().sum(dim=(2, 3), keepdim=True) / pixels).sqrt()
    return torch.where(deviation > 1e-6, centered / deviation.clamp(min=1e-6), torch.zeros_like(centered))


class ZScoreBaseline:
    """Score every brain pixel by how bright it is for its slice; several modalities are averaged.

    Args:
        sigma: Gaussian smoothing of the scores inside the brain, in pixels of a 128 x 128 slice; 0: none.
        absolute: Whether a dark pixel is as anomalous as a bright one.
    """

    threshold = None

    def __init__(self, sigma: float = 0.0, absolute: bool = False):
        self.sigma, self.absolute = sigma, absolute

    def __call__(self, sample: Sample) -> Tensor:
        """Score each slice by itself."""
        sigma, found = self.sigma * max(sample.grid) / REFERENCE_SIZE, []
        slices = zip(sample.image.split(SLICES_AT_ONCE), sample.brain_mask.split(SLICES_AT_ONCE), strict=True)
        for image, brain_mask in slices:
            scores = gaussian_smooth(zscore(image, brain_mask), brain_mask, sigma)
            found.append((scores.abs() if self.absolute else scores).mean(dim=1, keepdim=True))
        return torch.cat(found)


class IteratedZScoreBaseline:
    """Score a scan by its smoothed robust z-score, and measure center and scale again on what is not marked.

    Center and scale are median and 1.4826 times the median absolute deviation of the smoothed intensities of the whole
    scan. It ends when nothing changes. The threshold is its own: no healthy slice is needed.

    Args:
        sigma: Gaussian smoothing inside the brain in mm, in all directions of a volume.
        threshold: Robust deviations above which a voxel is marked, and no longer measured.
        max_iterations: Of measuring, at most.
    """

    def __init__(self, sigma: float = 1.5, threshold: float = 2.5, max_iterations: int = 50):
        self.sigma, self.threshold, self.max_iterations = sigma, threshold, max_iterations

    def __call__(self, sample: Sample) -> Tensor:
        """Score the slices of a scan together, in robust deviations of its unmarked brain; 0 where that is constant."""
        inside = sample.brain_mask[:, 0]
        sigmas = [self.sigma / mm if size > 1 else 0.0 for mm, size in zip(sample.spacing, inside.shape, strict=True)]
        scores = torch.zeros(inside.shape)
        for modality in sample.image.unbind(dim=1):
            smooth = blur_inside(modality, inside.float(), sigmas, 1e-6)
            scores[inside] += torch.from_numpy(self._deviations(smooth[inside].numpy())) / sample.image.shape[1]
        return scores[:, None]

    def _deviations(self, values: np.ndarray) -> np.ndarray:
        """Robust deviations of values (P,) from those among them that are not marked."""
        ascending = np.sort(values)  # what is not marked are the first of them
        scores, number = np.zeros_like(values), len(values)
        for _ in range(self.max_iterations):
            normal = ascending[:number]
            center = np.median(normal) if number else 0.0
            deviation = 1.4826 * np.median(np.abs(normal - center)) if number else 0.0
            if deviation <= 1e-6 * max(abs(center), 1e-30):
                break
            scores = (values - center) / deviation
            before, number = number, int((scores <= self.threshold).sum())
            if number == before:
                break
        return scores


Baseline = ZScoreBaseline | IteratedZScoreBaseline
