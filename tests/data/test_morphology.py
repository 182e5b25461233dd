"""Boxes, holes and parts of masks."""

import numpy as np
import pytest
from scipy import ndimage
from scripts.data.morphology import box_of, fill_holes, largest_component


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_holes_are_those_of_scipy(part):
    mask = np.random.default_rng(2).random((23, 31)) < part
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_box_holds_all_of_a_mask_and_no_more():
    mask = np.zeros((5, 7, 4), bool)
    mask[1, 2, 3] = mask[3, 6, 0] = True
    assert box_of(mask) == (slice(1, 4), slice(2, 7), slice(0, 4))
    assert box_of(mask[1]) == (slice(2, 3), slice(3, 4))


def test_margin_of_a_box_ends_where_the_mask_does():
    mask = np.zeros((9, 9), bool)
    mask[1:4, 6] = True
    assert box_of(mask, 1) == (slice(0, 5), slice(5, 8))
    assert box_of(mask, 3) == (slice(0, 7), slice(3, 9))


@pytest.mark.parametrize(("connectivity", "size"), [(1, 27), (2, 27), (3, 35)])
def test_largest_component_is_connected_by_faces_edges_or_corners(connectivity, size):
    mask = np.zeros((7, 7, 8), bool)
    mask[:2, :2, :2] = mask[2:5, 2:5, 2:5] = mask[6, 6, 7] = True
    found = largest_component(mask, connectivity)
    assert found.sum() == size and found[3, 3, 3] and not found[6, 6, 7] and found.shape == mask.shape
    assert mask.sum() == 36


def test_one_of_equal_components_is_taken_and_none_of_an_empty_mask():
    mask = np.array([False, True, True, False, True, True])
    assert largest_component(mask).sum() == 2
    assert not largest_component(mask & False).any()
