"""What any method has to beat: the intensity itself as the anomaly score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..method.scores import gaussian_smooth

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


class IteratedZScoreBaseline:
    """Score a scan by its smoothed robust z-score, and measure center and scale again on what is not marked.

    Center and scale are median and 1.4826 times the median absolute deviation of the smoothed intensities of the whole
    scan. It ends when nothing changes. The threshold is its own: no healthy slice is needed.

    Args:
        sigma: Gaussian smoothing inside the brain in mm, in all directions of a volume.
        threshold: Robust deviations above which a voxel is marked, and no longer measured.
        most_rounds: Of measuring, at most.
    """

    by_volume = True  # it is called with the spacing of the scan

    def __init__(self, sigma: float = 1.5, threshold: float = 2.5, most_rounds: int = 50):
        self.sigma, self.threshold, self.most_rounds = sigma, threshold, most_rounds

    def __call__(self, image: Tensor, brain_mask: Tensor, spacing: Sequence[float]) -> Tensor:
        """Score the D slices of a scan together; several modalities are averaged.

        Args:
            image: (D, M, H, W).
            brain_mask: (D, 1, H, W), bool.
            spacing: Between slices, rows and columns in mm.

        Returns:
            (D, 1, H, W), in robust deviations of the unmarked brain; 0 outside, and where the brain is empty or
            constant.
        """
        inside = brain_mask[:, 0].numpy()
        scores = [self._score(modality.numpy(), inside, spacing) for modality in image.unbind(dim=1)]
        return torch.from_numpy(np.mean(scores, axis=0))[:, None]

    def _score(self, image: np.ndarray, inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        sigmas = [self.sigma / mm if size > 1 else 0.0 for mm, size in zip(spacing, image.shape, strict=True)]
        mass = ndimage.gaussian_filter(inside.astype(np.float32), sigmas, mode="constant")
        smooth = ndimage.gaussian_filter(np.where(inside, image, 0).astype(np.float32), sigmas, mode="constant")
        values = (smooth / np.maximum(mass, 1e-6))[inside]
        score, marked = np.zeros_like(values), np.zeros(values.shape, dtype=bool)
        for _ in range(self.most_rounds):
            normal = values[~marked]
            center = np.median(normal) if normal.size else 0.0
            deviation = 1.4826 * np.median(np.abs(normal - center)) if normal.size else 0.0
            if deviation <= 1e-6 * max(abs(center), 1e-30):
                break
            score = (values - center) / deviation
            before, marked = marked, score > self.threshold
            if np.array_equal(marked, before):
                break
        result = np.zeros(image.shape, np.float32)
        result[inside] = score
        return result


class AtlasBaseline:
    """Score every brain pixel by how bright it is for its place: its smoothed z-score against the training slices.

    Mean and deviation of a pixel come from the healthy slices, smoothed over neighbors. Only for slices that are
    registered to each other, all of one grid and plane.

    Args:
        slices: Healthy slices, as `scripts.data.read_slices` lists them.
        transform: Loads one to ``image`` (M + 1, H, W), modalities and brain mask.
        sigma: Gaussian smoothing of the z-scores inside the brain, in pixels of a 128 x 128 slice.
    """

    SMOOTHING = 1.5  # of the atlas, pixels
    LEAST_VARIANCE = 0.05

    def __init__(self, slices: Sequence[dict], transform: Callable[[dict], dict], sigma: float = 1.3):
        self.score = ZScoreBaseline(sigma)
        number = total = square = torch.zeros(())
        for item in slices:
            inputs = transform({key: value for key, value in item.items() if key != "label"})["image"][None]
            brain = inputs[:, -1:] > 0.5
            scores = self.score(inputs[:, :-1], brain)
            number, total, square = number + brain, total + scores, square + scores.square()
        everywhere = torch.ones_like(number, dtype=torch.bool)
        count, total, square = (gaussian_smooth(x.float(), everywhere, self.SMOOTHING) for x in (number, total, square))
        self.mean = total / count.clamp(min=1)
        variance = (square / count.clamp(min=1) - self.mean.square()).clamp(min=0)
        self.deviation = (variance + self.LEAST_VARIANCE).sqrt()

    def __call__(self, image: Tensor, brain_mask: Tensor) -> Tensor:
        """Score slices (N, M, H, W) with their brain pixels (N, 1, H, W), bool: (N, 1, H, W), 0 outside.

        Raises:
            ValueError: When the slices have another grid than the atlas.
        """
        if image.shape[-2:] != self.mean.shape[-2:]:
            raise ValueError(
                f"The atlas has {list(self.mean.shape[-2:])} pixels, a slice {list(image.shape[-2:])}: give all slices "
                "one grid, or leave out configs/atlas.json."
            )
        return (self.score(image, brain_mask) - self.mean) / self.deviation * brain_mask
