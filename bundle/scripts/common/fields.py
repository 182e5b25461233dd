"""Random numbers and smooth fields that training and made images share, all from one given generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

FARTHEST = 18.0  # exponent of a Gaussian, at 6 sigma: smaller weights are too small for fast arithmetic
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def uniform(low: float, high: float, shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw numbers from [low, high), on the generator's device."""
    return low + (high - low) * torch.rand(tuple(shape), generator=generator, device=generator.device)


def log_uniform(low: float, high: float, shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw positive numbers whose logarithm is uniform: as many between 1 and 2 as between 2 and 4."""
    return uniform(math.log(low), math.log(high), shape, generator).exp()


def normal(shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw standard normal numbers, on the generator's device."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def chance(probability: float, shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw True with a probability in [0, 1]."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device) < probability


def coarse_field(number: int, size: Sequence[int], knots: int, generator: Generator) -> Tensor:
    """Draw smooth fields: standard normal knots of a coarse grid, linear between them, shifted at random.

    Args:
        number: Fields N.
        size: Pixels of one, (H, W) or (H, W, D).
        knots: Knots along the first axis; other axes have as many in the same length, two at least.
        generator: Source of randomness.

    Returns:
        Fields (N, H, W[, D]); the deviation is 1 at the knots and lower between them.
    """
    longest = [max(2, round(knots * pixels / size[0])) for pixels in size]
    grid = normal((number, 1, *(count + 2 for count in longest)), generator)
    wider = [round(pixels * (knots + 2) / knots) for pixels in size]
    field = F.interpolate(grid, wider, mode=MODES[len(size)])[:, 0]
    for axis, (large, pixels) in enumerate(zip(wider, size, strict=True), start=1):
        start = int(torch.randint(large - pixels + 1, (1,), generator=generator, device=generator.device))
        field = field.narrow(axis, start, pixels)
    return field


def smoothing_matrix(pixels: int, sigma: Tensor) -> Tensor:
    """Weights of a Gaussian, (..., pixels, pixels); each row sums to 1: at the border the kernel is cut and scaled.

    Args:
        pixels: Length of the axis.
        sigma: Standard deviations in pixels, of any shape; 0 leaves the axis as it is.
    """
    place = torch.arange(pixels, dtype=torch.float32, device=sigma.device)
    distance = (place[:, None] - place[None]) / sigma.clamp(min=1e-3)[..., None, None]
    exponent = (0.5 * distance.square()).clamp(max=FARTHEST)
    kernel = torch.exp(-exponent) * (exponent < FARTHEST)
    return kernel / kernel.sum(dim=-1, keepdim=True)


def blur(image: Tensor, sigmas: Sequence[float | Tensor]) -> Tensor:
    """Smooth the last axes with a Gaussian each.

    Rows are multiplied by a matrix: for slices of this size that is faster than a convolution of one channel.

    Args:
        image: (N, ..., H, W) or (N, ..., H, W, D), float32.
        sigmas: Standard deviations in pixels for each of the last axes: numbers, or one for each image, (N,).

    Returns:
        Smoothed images.
    """
    for axis, sigma in zip(range(-len(sigmas), 0), sigmas, strict=True):
        kernel = smoothing_matrix(image.shape[axis], torch.as_tensor(sigma, device=image.device))
        if kernel.ndim == 3:
            kernel = kernel.view(-1, *(1,) * (image.ndim - 3), *kernel.shape[1:])
        image = (image.movedim(axis, -1) @ kernel.mT).movedim(-1, axis)
    return image


def blur_inside(image: Tensor, region: Tensor, sigmas: Sequence[float | Tensor], least_mass: float) -> Tensor:
    """Smooth what lies in a region without mixing in the rest (normalized convolution).

    Args:
        image: (N, ..., H, W[, D]).
        region: Weights of the pixels in [0, 1], which fit ``image``.
        sigmas: As in `blur`.
        least_mass: Smallest part of the kernel that the result is divided by.
    """
    return blur(image * region, sigmas) / blur(region, sigmas).clamp(min=least_mass)
