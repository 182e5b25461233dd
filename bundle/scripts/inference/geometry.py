"""Where the brain of a volume lies, and which window around it the network sees."""

from __future__ import annotations

import math

import torch
from scipy import ndimage
from torch import Tensor

SAME_FIELD_OF_VIEW = 0.02  # part by which two may differ


def largest_component(brain_mask: Tensor) -> Tensor:
    """The largest connected part (26 neighbors) of a brain mask (H, W, D), bool: stray voxels are no brain."""
    labels, number = ndimage.label(brain_mask.cpu().numpy(), structure=ndimage.generate_binary_structure(3, 3))
    if number < 2:
        return brain_mask
    parts = torch.from_numpy(labels).flatten().bincount()
    parts[0] = 0
    return torch.from_numpy(labels == int(parts.argmax())).to(brain_mask.device)


def window(brain_mask: Tensor, spacing: Tensor, field_of_view: Tensor) -> list[int]:
    """How to pad (negative: crop) slices so that they show the field of view of other slices, the brain in its center.

    Rows or columns of background at the edges change nothing: the window moves with the brain.

    Args:
        brain_mask: The brain of all slices (D, H, W), bool.
        spacing: Millimeters between rows and between columns, shape (2,).
        field_of_view: Height and width in mm, shape (2,); zeros: leave the slices as they are.

    Returns:
        Columns at the left and right, rows at the top and bottom, as `torch.nn.functional.pad` takes them; zeros for
        slices that have this field of view already, wherever the brain lies in them.
    """
    size, spacing = torch.tensor(brain_mask.shape[1:]), spacing.cpu()
    wanted = field_of_view.cpu()
    if (
        not brain_mask.any()
        or not (wanted > 0).all()
        or ((size * spacing / wanted - 1).abs() < SAME_FIELD_OF_VIEW).all()
    ):
        return [0, 0, 0, 0]
    padding: list[int] = []
    for axis in (1, 0):
        on = brain_mask.any(dim=0).any(dim=1 - axis).nonzero()
        length = max(1, round(float(wanted[axis] / spacing[axis])))
        start = math.floor(int(on.min() + on.max() + 1 - length) / 2)
        padding += [-start, start + length - int(size[axis])]
    return padding


def part_cut_off(brain_mask: Tensor, padding: list[int]) -> float:
    """Part of a brain (H, W, D), bool, in [0, 1], that a window leaves out; ``padding`` as `window` gives it."""
    left, right, top, bottom = (max(0, -number) for number in padding)
    height, width = brain_mask.shape[:2]
    kept = brain_mask[top : height - bottom, left : width - right].sum()
    return float(1 - kept / brain_mask.sum().clamp(min=1))
