"""Parts, holes and boxes of masks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask of any dimension.

    Args:
        mask: Bool, not empty.
        margin: Voxels around it that belong to the box too, where there are so many.
    """
    box = []
    for axis, size in enumerate(mask.shape):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, size)))
    return tuple(box)


def largest_component(mask: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """The largest connected part of a mask of any dimension; the first of those that are as large.

    Args:
        mask: Bool; an empty one stays.
        connectivity: 1 connects voxels that share a face, 2 those that share an edge too, 3 a corner too.
    """
    if not mask.any():
        return mask
    box = box_of(mask)
    labels, number = ndimage.label(mask[box], ndimage.generate_binary_structure(mask.ndim, connectivity))
    if number < 2:
        return mask
    largest = np.zeros_like(mask)
    largest[box] = labels == np.bincount(labels[labels > 0]).argmax()
    return largest


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask of any dimension with its holes, as `scipy.ndimage.binary_fill_holes` gives it, several times faster."""
    outside, _ = ndimage.label(~np.pad(mask, 1))
    return (outside != outside.flat[0])[(slice(1, -1),) * mask.ndim]
