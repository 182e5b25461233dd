"""How badly a pixel was reconstructed: the score that the refinement, its threshold and the anomaly map share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_matrix(size: int, sigma: float, image: Tensor) -> Tensor:
    """The matrix that smooths a row of pixels with a Gaussian cut at 4 sigma; zeros lie beyond the border.

    Args:
        size: Pixels of the row.
        sigma: Standard deviation in pixels, above 0.
        image: Gives type and device.

    Returns:
        Weights (size, size), symmetric.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    total = torch.exp(-0.5 * (offsets / sigma) ** 2).sum()
    pixels = torch.arange(size, device=image.device, dtype=image.dtype)
    distance = (pixels[:, None] - pixels[None, :]).abs()
    kernel = torch.exp(-0.5 * (distance / sigma) ** 2) / total
    return kernel * (distance <= radius)


def gaussian_smooth(image: Tensor, region: Tensor, sigma: float, least_mass: float = 1e-6) -> Tensor:
    """Smooth slices inside a region with a Gaussian that does not mix in what lies outside (normalized convolution).

    Rows and columns are multiplied by a matrix each: for slices of this size that is five times faster than a
    convolution of a single channel.

    Args:
        image: Slices (N, C, H, W), float.
        region: Pixels that count (N, 1, H, W), bool.
        sigma: Standard deviation in pixels; 0 returns ``image`` inside the region.
        least_mass: Smallest part of the kernel that the result is divided by; a region of few pixels counts less.

    Returns:
        Smoothed slices (N, C, H, W), 0 outside the region.
    """
    weight = region.to(image.dtype)
    if sigma <= 0:
        return image * weight
    both = torch.cat([image * weight, weight], dim=1)
    both = gaussian_matrix(image.shape[2], sigma, image) @ both @ gaussian_matrix(image.shape[3], sigma, image)
    smooth, mass = both[:, :-1], both[:, -1:]
    return smooth / mass.clamp(min=least_mass) * weight


def error_map(image: Tensor, reconstruction: Tensor, brain_mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Squared reconstruction error inside the brain, averaged over the modalities (Liang et al. 2024, equation 3).

    Args:
        image: Slices (N, M, H, W).
        reconstruction: Their reconstruction (N, M, H, W).
        brain_mask: Brain pixels (N, 1, H, W), bool.
        sigma: Gaussian smoothing inside the brain in pixels; 0, the published value, leaves the error as it is.

    Returns:
        Scores (N, 1, H, W), 0 outside the brain.
    """
    error = (reconstruction - image).square().mean(dim=1, keepdim=True)
    return gaussian_smooth(error, brain_mask, sigma)


def highest_fraction(score: Tensor, region: Tensor, fraction: float) -> Tensor:
    """Mark the pixels of a region with the highest scores, slice by slice.

    Args:
        score: Anomaly scores (N, 1, H, W).
        region: Pixels that count (N, 1, H, W), bool.
        fraction: Part of each slice's region to mark, in [0, 1]; pixels that tie with the last one left out are
            left out too, 1 marks the whole region.

    Returns:
        Marked pixels (N, 1, H, W), bool.
    """
    if fraction >= 1:
        return region
    ascending = score.masked_fill(~region, float("inf")).flatten(1).sort(dim=1).values
    count = region.flatten(1).sum(dim=1, keepdim=True)
    rank = ((1 - fraction) * (count - 1)).floor().long().clamp(min=0)
    cut = ascending.gather(1, rank)[:, :, None, None]
    return region & (score > cut)


def hysteresis(score: Tensor, low: float, high: float) -> Tensor:
    """Mark the connected components (8 neighbors) of pixels above ``low`` that hold a pixel above ``high``.

    skimage's `apply_hysteresis_threshold` for batches, on any device and in TorchScript.

    Args:
        score: Scores (N, 1, H, W).
        low: Lower threshold.
        high: Upper threshold.

    Returns:
        Marked pixels (N, 1, H, W), bool.
    """
    candidate = score > low
    marked = candidate & (score > high)
    growing = (marked.flatten(1).any(dim=1) & (candidate != marked).flatten(1).any(dim=1)).nonzero()[:, 0]
    while len(growing) > 0:
        before, allowed = marked[growing], candidate[growing]
        grown = before
        for _ in range(4):
            grown = with_neighbors(grown) & allowed
        marked[growing] = grown
        growing = growing[(grown != before).flatten(1).any(dim=1)]
    return marked


def with_neighbors(mask: Tensor) -> Tensor:
    """Each pixel of masks (N, 1, H, W), bool, or any of its 8 neighbors."""
    padded = F.pad(mask, [1, 1, 1, 1])
    rows = padded[:, :, :-2] | padded[:, :, 1:-1] | padded[:, :, 2:]
    return rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]
