"""Random changes of whole batches of slices on the training device, from one generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _uniform(low: float, high: float, number: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(number, generator=generator, device=generator.device)


def random_affine(image: Tensor, brain_mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip left and right, turn by up to 8 degrees, scale by up to 8 % and shift by up to 5 % (rows) and 2 % (columns).

    MONAI's `RandAffined` does one slice at a time on the CPU with a state of its own, which a resumed training could
    not repeat.

    Args:
        image: Slices (N, M, H, W).
        brain_mask: Brain pixels (N, 1, H, W), bool.
        generator: Source of randomness, on the device of ``image``.

    Returns:
        Changed slices and brain masks; what comes in from outside is 0.
    """
    number = len(image)
    angle = _uniform(-8, 8, number, generator) * (math.pi / 180)
    scale = _uniform(0.92, 1.08, number, generator)
    flip = torch.rand(number, generator=generator, device=image.device).sub(0.5).sign()
    rows, columns = _uniform(-0.04, 0.04, number, generator), _uniform(-0.1, 0.1, number, generator)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack(
        [torch.stack([cosine, -sine, rows], dim=1), torch.stack([flip * sine, flip * cosine, columns], dim=1)], dim=1
    )
    grid = F.affine_grid(matrix, list(image[:, :1].shape), align_corners=False)
    moved = F.grid_sample(image, grid, align_corners=False)
    return moved, F.grid_sample(brain_mask.to(image.dtype), grid, mode="nearest", align_corners=False) > 0.5


def random_intensity(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change contrast by up to 10 %, brightness by up to 0.05 and add a smooth bias field of up to about 0.1.

    Args:
        image: Standardized slices (N, M, H, W).
        generator: Source of randomness, on the device of ``image``.

    Returns:
        Changed slices.
    """
    number, channels = image.shape[:2]
    contrast = _uniform(0.9, 1.1, number, generator)[:, None, None, None]
    brightness = _uniform(-0.05, 0.05, number, generator)[:, None, None, None]
    knots = torch.randn(number, channels, 3, 3, generator=generator, device=image.device)
    strength = _uniform(0, 0.1, number, generator)[:, None, None, None]
    return image * contrast + brightness + strength * F.interpolate(knots, image.shape[-2:], mode="bicubic")
