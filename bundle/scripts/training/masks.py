"""Spatial masks: which pixels of the brain are hidden in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _bump(
    size: tuple[int, int],
    center: Tensor,
    row_variance: Tensor,
    column_variance: Tensor,
    covariance: Tensor,
    unit: Tensor,
) -> Tensor:
    """Gaussians (N, H, W) that are 1 at a center each, the number of its pixel.

    Variances and covariances are (N,), in squares of ``unit``: sigmas along an image's side.
    """
    height, width = size
    device = center.device
    rows = (torch.arange(height, device=device)[None, :, None] - (center // width)[:, None, None]) / height
    columns = (torch.arange(width, device=device)[None, None, :] - (center % width)[:, None, None]) / width
    determinant = (row_variance * column_variance - covariance**2).clamp(min=1e-3)
    distance = (
        column_variance[:, None, None] * rows**2
        - 2 * covariance[:, None, None] * rows * columns
        + row_variance[:, None, None] * columns**2
    ) * (unit**2 / determinant)[:, None, None]
    return torch.exp(-distance / 2)


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

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, generator=generator, device=device)

    inside = brain_mask.flatten(1).float()
    has_brain = inside.any(dim=1)
    inside = torch.where(has_brain[:, None], inside, torch.ones_like(inside))
    center = torch.multinomial(inside, 1, generator=generator)[:, 0]
    wide = torch.rand(number, generator=generator, device=device) < 2 / 3
    row_variance, column_variance = uniform(0.3, 10), uniform(0.3, 10)
    deviation = (row_variance * column_variance).sqrt()
    covariance = deviation * uniform(-1, 1)
    unit = torch.where(wide, torch.full_like(deviation, 24.0), torch.full_like(deviation, 96.0))
    bump = _bump((height, width), center, row_variance, column_variance, covariance, unit)
    density = (bump.flatten(1) + 1e-12) * inside

    hidden = torch.zeros_like(brain_mask)
    counts = (
        deviation * torch.where(wide, uniform(100, 200), uniform(5, 20)),
        uniform(5, 10),
        uniform(3, 10),
    )
    for count, share in zip(counts, (60, 30, 15), strict=True):
        side = max(1, round(max(height, width) / share))
        centers = torch.multinomial(density, int(count.max()), replacement=True, generator=generator)
        drawn = torch.arange(centers.shape[1], device=device) < count.long()[:, None]
        points = torch.zeros(number, height * width, device=device).scatter_reduce(
            1, centers, drawn.float(), reduce="amax"
        )
        padded = F.pad(points.view(number, 1, height, width), ((side - 1) // 2, side // 2) * 2)
        hidden |= F.max_pool2d(padded, side, stride=1) > 0
    return hidden & brain_mask
