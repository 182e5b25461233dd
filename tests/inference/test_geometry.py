"""The window of the network follows the brain, whatever lies around it."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.inference.geometry import window
from scripts.inference.inferer import IterMaskInferer

FIELD = torch.tensor([30.0, 24.0])


class Brightest(torch.nn.Module):
    """Stands for the method: marks what is bright on the grid that it is shown."""

    modalities, image_size = 1, 24
    field_of_view = FIELD
    planes = torch.tensor([float("inf"), -float("inf")])

    def refine(self, image, brain_mask, **options):
        return brain_mask & (image > 2), image, image, torch.ones(len(image), dtype=torch.int64)

    def map_threshold(self, threshold_scale=1.0):
        return 2.0 * threshold_scale


def scan():
    """A brain with a bright square, (1, 2, 40, 36, 5): image and brain mask."""
    rows, columns = np.mgrid[-1:1:40j, -1:1:36j]
    brain = np.repeat((rows**2 + columns**2 < 0.25)[..., None], 5, axis=2)
    brain[..., 0] = brain[..., 4] = False
    image = brain * np.random.default_rng(0).uniform(0.5, 1.5, brain.shape)
    image[18:24, 15:20, 1:4] = 3
    return torch.from_numpy(np.stack([image, brain]))[None].float()


def marked(volume):
    return IterMaskInferer()(MetaTensor(volume, affine=torch.eye(4)), Brightest()).as_tensor()


@pytest.mark.parametrize(
    "padding", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (3, 2, 5, 1), (2, 1, 7, 30), (-5, -3, -4, -6)]
)
def test_background_around_a_scan_changes_nothing(padding):
    volume = scan()
    grown = torch.nn.functional.pad(volume, (0, 0, *padding))
    back = torch.nn.functional.pad(marked(grown), (0, 0, *(-number for number in padding)))
    assert marked(volume).any() and torch.equal(back, marked(volume))


def test_a_stray_voxel_far_from_the_brain_does_not_move_the_window(caplog):
    volume = scan()
    wide = torch.nn.functional.pad(volume, (0, 0, 0, 60, 0, 60))
    stray = wide.clone()
    stray[0, :, -1, -1, 2] = 1
    assert torch.equal(marked(stray), marked(wide)) and not caplog.records


def test_brain_that_the_window_cuts_is_told(caplog):
    volume = torch.nn.functional.interpolate(scan(), scale_factor=(2, 2, 1), mode="nearest")
    assert marked(volume).any()
    assert "volume: the window of the network leaves out" in caplog.text and "shows 30 x 24 mm" in caplog.text


@pytest.mark.parametrize(
    ("field_of_view", "expected"),
    [
        ((0, 0), [0, 0, 0, 0]),  # unknown
        ((40, 60), [-2, 2, 3, -3]),  # the slice's own: the brain still comes to the center
        ((39.5, 60.5), [-2, 2, 3, -3]),  # nearly
        (
            (20, 30),
            [-7, -3, -2, -8],
        ),  # rows 2 to 11 and columns 7 to 16 around a brain in rows 4 to 9, columns 10 to 13
        ((40, 90), [3, 7, 3, -3]),
    ],
)
def test_window_is_the_field_of_view_around_the_brain(field_of_view, expected):
    brain = torch.zeros(20, 20, 5, dtype=torch.bool)
    brain[4:10, 10:14, 2] = True
    assert window(brain, [2, 3, 1], field_of_view) == [0, 0, *expected]
    assert window(torch.zeros_like(brain), [2, 3, 1], [10, 10]) == [0] * 6
