"""Which slices of a subject are taken, and what the datalist says of its brain."""

import numpy as np
import pytest
from scripts.data.subject_slices import robust_scale, select_slices


def test_selection():
    brain, label = np.zeros((5, 4, 6), bool), np.zeros((5, 4, 6), bool)
    brain[..., 1:5] = True
    label[0, 0, 2], label[0, :2, 4], label[0, :3, 0] = True, True, True
    assert select_slices(brain, label, "healthy") == [1, 3]
    assert select_slices(brain, None, "healthy") == [1, 2, 3, 4]
    assert select_slices(brain, label, "all", (2, 6)) == [2, 3, 4]
    assert select_slices(brain, label, "largest_lesion") == [4]  # slice 0 has more, but no brain
    assert select_slices(brain, label, "largest_lesion", (1, 4)) == [2]
    assert select_slices(brain, label, "largest_lesion", (3, 4)) == []
    assert select_slices(brain, None, "largest_lesion") == []
    with pytest.raises(ValueError, match="must be one of healthy, largest_lesion, all, got 'any'"):
        select_slices(brain, label, "any")


def test_slice_with_just_enough_brain_is_kept():
    brain = np.zeros((10, 10, 3), bool)
    brain[0, :2, 1], brain[0, :1, 2] = True, True
    assert select_slices(brain, None, "all", smallest_brain_fraction=0.02) == [1]


def test_brain_is_measured_by_median_and_median_deviation():
    image = np.stack([np.arange(12.0).reshape(3, 2, 2), np.full((3, 2, 2), 5.0)])
    brain = np.ones((3, 2, 2), bool)
    brain[2] = False
    assert robust_scale(image, brain) == {"median": [3.5, 5.0], "deviation": [2.9652, 0.001]}
