"""Random changes of whole batches of slices on the training device, from one generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..common.fields import blur, blur_inside, chance, coarse_field, log_uniform, normal, uniform

LARGEST_ANGLE = 12.0  # degrees
LARGEST_SCALE = 0.15  # of the logarithm of the size
LARGEST_ASPECT = 0.06  # of the logarithm of height beside width
LARGEST_SHIFT = 6.0  # pixels
LARGEST_BEND = 3.0  # pixels, deviation of the elastic changes at their knots
BEND_KNOTS = (5, 6)  # of the elastic changes: gentle
BRAIN_LEVEL = (5.0, 10.0)  # deviations: how far the brain's median lies above an intensity of 0
GAMMA_FRACTION, GAMMA = 0.5, (0.65, 1.5)  # part of the slices whose contrast is bent, and by what power
BIAS = ((2, 0.16), (4, 0.04))  # knots and largest strength of the bias fields, as parts of the intensity
BLURRED_FRACTION = 0.6  # part of the slices of a lower resolution: of thick slices in rows or columns, or both alike
THICK_SIGMA, FINE_SIGMA = (0.3, 2.0), (0.2, 1.4)  # pixels, across and within thick slices
NOISY_FRACTION, NOISE = 0.7, 0.45  # part of the slices with more noise, and its largest deviation
GRAIN_FRACTION, GRAIN_SIGMA, GRAIN_STRENGTH = 0.4, 0.8, 2.2  # part with coarser noise, pixels, to the same deviation
SATURATED_FRACTION, SATURATION = 0.25, (3.0, 7.0)  # part of the slices cut at the top, as 8-bit exports; deviations


def random_deformation(image: Tensor, generator: Generator) -> Tensor:
    """Flip the rows' order, turn, scale, shift and bend slices gently, around their middle.

    Args:
        image: Slices (N, C, H, W).
        generator: Source of randomness, on the device of ``image``.

    Returns:
        Changed slices (N, C, H, W), linear between the pixels; what comes in from outside is 0.
    """
    number, _, height, width = image.shape
    angle = uniform(-LARGEST_ANGLE, LARGEST_ANGLE, (number, 1, 1), generator) * (math.pi / 180)
    size_factor = uniform(-LARGEST_SCALE, LARGEST_SCALE, (number, 1, 1), generator).exp()
    aspect = uniform(-LARGEST_ASPECT, LARGEST_ASPECT, (number, 1, 1), generator).exp()
    flip = 2.0 * chance(0.5, (number, 1, 1), generator) - 1
    down, right = uniform(-LARGEST_SHIFT, LARGEST_SHIFT, (2, number, 1, 1), generator)
    rows = torch.arange(height, device=image.device) - (height - 1) / 2
    columns = (torch.arange(width, device=image.device) - (width - 1) / 2)[None]
    cosine, sine = size_factor * angle.cos(), size_factor * angle.sin()
    row = flip * (rows[:, None] * cosine - columns * sine) * aspect + down
    column = (rows[:, None] * sine + columns * cosine) / aspect + right
    bend = normal((number, 2, *BEND_KNOTS), generator) * uniform(0, LARGEST_BEND, (number, 1, 1, 1), generator)
    bend = F.interpolate(bend, (height, width), mode="bicubic")
    grid = torch.stack([2 * (column + bend[:, 1]) / width, 2 * (row + bend[:, 0]) / height], dim=-1)
    return F.grid_sample(image, grid, align_corners=False)


def random_appearance(image: Tensor, generator: Generator) -> Tensor:
    """Bend the contrast by a power and add a smooth bias field, as scanners do.

    Args:
        image: Slices (N, M, H, W) in robust deviations of the brain from its median.
        generator: Source of randomness, on the device of ``image``.

    Returns:
        Changed slices.
    """
    flat = image.flatten(0, 1)
    number, one = len(flat), (len(flat), 1, 1)
    level = uniform(*BRAIN_LEVEL, one, generator)
    power = torch.where(chance(GAMMA_FRACTION, one, generator), log_uniform(*GAMMA, one, generator), 1.0)
    intensity = (1 + flat / level).clamp(min=0.02)
    intensity = 1 + (intensity**power - 1) / power
    for knots, strength in BIAS:
        field = coarse_field(number, flat.shape[1:], knots, generator)
        intensity = intensity * (1 + uniform(0, strength, one, generator) * field)
    return ((intensity - 1) * level).view(image.shape)


def random_quality(
    lesioned: Tensor, healthy: Tensor, brain_mask: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Lower the resolution, take thick slices, add noise and saturate: the same for slices with and without lesions.

    Args:
        lesioned: Slices with lesions (N, M, H, W), in robust deviations of the brain from its median.
        healthy: The same without.
        brain_mask: (N, 1, H, W), bool.
        generator: Source of randomness, on the device of the slices.

    Returns:
        Both, changed.
    """
    number, one = len(lesioned), (len(lesioned), 1, 1, 1)
    thick, fine = uniform(*THICK_SIGMA, (number,), generator), uniform(*FINE_SIGMA, (number,), generator)
    kind = uniform(0, 3 / BLURRED_FRACTION, (number,), generator)
    sigmas = torch.where(kind < 1, thick, fine), torch.where((kind >= 1) & (kind < 2), thick, fine)
    blurred = (kind < 3).view(one)
    both = torch.cat([lesioned, healthy], dim=1)
    both = torch.where(blurred, blur_inside(both, brain_mask.to(both.dtype), sigmas, 0.05), both)
    noise = normal(lesioned.shape, generator)
    coarse = GRAIN_STRENGTH * blur(noise, (GRAIN_SIGMA, GRAIN_SIGMA))
    noise = torch.where(chance(GRAIN_FRACTION, one, generator), coarse, noise)
    strength = uniform(0, NOISE, one, generator) * chance(NOISY_FRACTION, one, generator)
    both = both + strength * noise.repeat(1, 2, 1, 1)
    top = torch.where(chance(SATURATED_FRACTION, one, generator), uniform(*SATURATION, one, generator), math.inf)
    lesioned, healthy = torch.minimum(both, top).chunk(2, dim=1)
    return lesioned, healthy
