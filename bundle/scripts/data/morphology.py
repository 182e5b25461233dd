"""Parts, holes and boxes of masks."""

from __future__ import annotations

import numpy as np
from monai.transforms.utils import generate_spatial_bounding_box, get_largest_connected_component_mask
from scipy import ndimage


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask of any dimension, with a margin in voxels where there are so many."""
    start, end = generate_spatial_bounding_box(mask[None], margin=margin, allow_smaller=True)
    return tuple(map(slice, map(int, start), map(int, end)))


def largest_component(mask: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """The largest connected part of a mask of any dimension.

    Args:
        mask: Bool; an empty one stays.
        connectivity: 1 connects voxels that share a face, 2 those that share an edge too, 3 a corner too.
    """
    if not mask.any():
        return mask
    box, largest = box_of(mask), np.zeros_like(mask)
    largest[box] = get_largest_connected_component_mask(mask[box], connectivity)
    return largest


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask of any dimension with its holes, as `scipy.ndimage.binary_fill_holes` gives it, several times faster."""
    outside, _ = ndimage.label(~np.pad(mask, 1))
    return (outside != outside.flat[0])[(slice(1, -1),) * mask.ndim]
