"""Which window around a brain the network sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def window(brain_mask: Tensor, spacing: Sequence[float], field_of_view: Sequence[float]) -> list[int]:
    """How to pad (negative: crop) a volume so that its axial slices show a field of view with the brain in its center.

    Rows or columns of background at the edges change nothing: the window moves with the brain.

    Args:
        brain_mask: The brain (X, Y, Z), bool.
        spacing: Millimeters between voxels.
        field_of_view: Length in mm along the first and the second axis; zeros: leave the volume as it is.

    Returns:
        Numbers before and after along the last axis, the second and the first, as `torch.nn.functional.pad` takes them.
    """
    padding = [0, 0]
    if not brain_mask.any() or not all(length > 0 for length in field_of_view):
        return padding * 3
    for axis in (1, 0):
        on = brain_mask.any(dim=2).any(dim=1 - axis).nonzero()
        length = max(1, round(field_of_view[axis] / spacing[axis]))
        start = math.floor(int(on.min() + on.max() + 1 - length) / 2)
        padding += [-start, start + length - brain_mask.shape[axis]]
    return padding
