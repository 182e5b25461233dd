"""Where the brain of a volume lies, and which window around it the network sees."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.morphology import largest_component


def largest_part(brain_mask: Tensor) -> Tensor:
    """The largest connected part (26 neighbors) of a brain mask (H, W, D), bool: stray voxels are no brain."""
    return torch.from_numpy(largest_component(brain_mask.cpu().numpy(), connectivity=3)).to(brain_mask.device)


def window(brain_mask: Tensor, spacing: Tensor, field_of_view: Tensor) -> list[int]:
    """How to pad (negative: crop) slices so that they show the field of view of other slices, the brain in its center.

    Rows or columns of background at the edges change nothing: the window moves with the brain.

    Args:
        brain_mask: The brain of all slices (D, H, W), bool.
        spacing: Millimeters between rows and between columns, shape (2,).
        field_of_view: Height and width in mm, shape (2,); zeros: leave the slices as they are.

    Returns:
        Columns at the left and right, rows at the top and bottom, as `torch.nn.functional.pad` takes them.
    """
    size, spacing = torch.tensor(brain_mask.shape[1:]), spacing.cpu()
    wanted = field_of_view.cpu()
    if not brain_mask.any() or not (wanted > 0).all():
        return [0, 0, 0, 0]
    padding: list[int] = []
    for axis in (1, 0):
        on = brain_mask.any(dim=0).any(dim=1 - axis).nonzero()
        length = max(1, round(float(wanted[axis] / spacing[axis])))
        start = math.floor(int(on.min() + on.max() + 1 - length) / 2)
        padding += [-start, start + length - int(size[axis])]
    return padding


def with_room(volume: Tensor, padding: list[int]) -> Tensor:
    """Pad (negative: crop) the slices of a volume by what lies around its brain.

    Args:
        volume: Modalities and, last, the brain mask, (M + 1, H, W, D).
        padding: As `window` gives it.

    Returns:
        The modalities padded by the lowest value outside the brain (by the lowest of all where there is no outside),
        the brain mask by 0.
    """
    outside = volume[-1] <= 0.5
    room = [float(modality[outside if outside.any() else ~outside].min()) for modality in volume[:-1]]
    padded = [F.pad(one, [0, 0, *padding], value=value) for one, value in zip(volume, [*room, 0.0], strict=True)]
    return torch.stack(padded)


def part_cut_off(brain_mask: Tensor, padding: list[int]) -> float:
    """Part of a brain (H, W, D), bool, in [0, 1], that a window leaves out; ``padding`` as `window` gives it."""
    left, right, top, bottom = (max(0, -number) for number in padding)
    height, width = brain_mask.shape[:2]
    kept = brain_mask[top : height - bottom, left : width - right].sum()
    return float(1 - kept / brain_mask.sum().clamp(min=1))
