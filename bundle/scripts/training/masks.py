"""Spatial masks: which pixels of the brain are hidden in training."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.fields import chance, uniform


def random_squares(brain_mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw masks as the published training does: squares of three sizes around one random place of the brain.

    A Gaussian bump with random width sits on a random brain pixel; centers of squares are drawn from it: many of
    about 1/60 of the image side, 5 to 9 of 1/30 and 3 to 9 of 1/15. Two thirds of the bumps are wide, one third
    narrow. Row and column of a center belong to one pixel here, and squares are centered on it; the published code
    takes them from two different pixels and grows squares down and right.

    Args:
        brain_mask: Brain pixels (N, 1, H, W), bool.
        generator: Source of randomness, on the device of ``brain_mask``.

    Returns:
        Hidden pixels (N, 1, H, W), bool, inside the brain.
    """
    number, _, height, width = brain_mask.shape
    device = brain_mask.device
    drawn = partial(uniform, shape=(number, 1, 1), generator=generator)
    inside = brain_mask.flatten(1).float()
    has_brain = inside.any(dim=1)
    inside = torch.where(has_brain[:, None], inside, torch.ones_like(inside))
    center = torch.multinomial(inside, 1, generator=generator)[..., None]  # number of a pixel
    rows = (torch.arange(height, device=device)[:, None] - center // width) / height
    columns = (torch.arange(width, device=device) - center % width) / width
    wide = chance(2 / 3, (number, 1, 1), generator)
    row_variance, column_variance = drawn(0.3, 10), drawn(0.3, 10)
    deviation = (row_variance * column_variance).sqrt()
    covariance = deviation * drawn(-1, 1)
    determinant = (row_variance * column_variance - covariance**2).clamp(min=1e-3)
    distance = column_variance * rows**2 - 2 * covariance * rows * columns + row_variance * columns**2
    unit = torch.where(wide, 24.0, 96.0)  # variances are in squares of it: sigmas along an image's side
    bump = torch.exp(-distance * (unit**2 / determinant) / 2)
    density = (bump.flatten(1) + 1e-12) * inside

    hidden = torch.zeros_like(brain_mask)
    counts = deviation * torch.where(wide, drawn(100, 200), drawn(5, 20)), drawn(5, 10), drawn(3, 10)
    for count, share in zip(counts, (60, 30, 15), strict=True):
        side = max(1, round(max(height, width) / share))
        centers = torch.multinomial(density, int(count.max()), replacement=True, generator=generator)
        counted = torch.arange(centers.shape[1], device=device) < count[:, 0].long()
        points = torch.zeros(number, height * width, device=device).scatter_reduce(
            1, centers, counted.float(), reduce="amax"
        )
        padded = F.pad(points.view(number, 1, height, width), ((side - 1) // 2, side // 2) * 2)
        hidden |= F.max_pool2d(padded, side, stride=1) > 0
    return hidden & brain_mask
