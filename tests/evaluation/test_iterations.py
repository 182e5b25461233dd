"""The picture of a mask that is refined from iteration to iteration."""

import numpy as np
import pytest
import torch
from PIL import Image
from scripts.evaluation.iterations import draw_iterations, typical_case

ROW = {"case": "a", "dice": 0.5, "lesion_pixels": 25, "lesion_pixels_128": 300.0, "iterations": 7.0}


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ([{"dice": 0.9}, {"dice": 0.6}, {"dice": 0.1}], "b"),  # nearest to the median
        ([{"dice": 0.9}, {"dice": 0.6, "lesion_pixels_128": 900.0}, {"dice": 0.5}], "c"),  # of those of medium size
        ([{"iterations": 1.0}, {"lesion_pixels": 0, "dice": float("nan")}, {"lesion_pixels_128": 5.0}], "c"),
        ([{"iterations": 1.0}, {"iterations": 0.0}], None),
        ([{}, {}], "a"),  # of equal ones the first by name
    ],
)
def test_a_case_of_medium_size_and_median_dice_is_shown(changes, chosen):
    assert typical_case([ROW | {"case": name} | change for name, change in zip("abc", changes, strict=False)]) == chosen


class Shrinking:
    """Stands for the inferer: each iteration after the first leaves a square one pixel smaller."""

    progress, outputs = True, ("mask", "anomaly_map", "iterations", "threshold")

    def __init__(self):
        self.settings = {"max_iterations": 6, "seed": 3}

    def __call__(self, inputs, network):
        count = self.settings["max_iterations"]
        result = torch.zeros(1, 4, *inputs.shape[-2:])
        result[:, 0, 4 : 20 - count, 4 : 20 - count] = 1
        result[:, 2] = 1 + count
        return result


@pytest.mark.parametrize("as_list", [False, True])
def test_panels_go_from_the_image_over_the_masks_to_result_and_label(tmp_path, as_list):
    inputs, label = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 24, 24)
    inputs[1] = 1
    label[:, 4:9, 4:9] = 1

    def transform(scan):
        slices = [{"image": inputs, "label": label, "case": scan["case"], "slice": number} for number in (3, 4)]
        return slices if as_list else slices[1]

    scans = [{"case": "x"}, {"case": "a", "error": "bad"}, {"case": "a"}]
    inferer = Shrinking()
    draw_iterations([ROW | {"case": "a_004"}], scans, transform, inferer, torch.nn.Linear(1, 1), str(tmp_path))
    assert inferer.settings == {"max_iterations": 6, "seed": 3} and inferer.progress
    with Image.open(tmp_path / "iterations.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    panels = np.array_split(pixels[60:], 7, axis=1)
    red, green = (
        [(2 * panel[..., channel] - panel.sum(axis=-1) > 150).sum() for panel in panels] for channel in (0, 1)
    )
    assert red[0] == 0 and red[1] > red[2] > red[3] > red[4] > red[5] > 0 and red[6] == 0
    assert [number > 0 for number in green] == [False] * 6 + [True]


def test_nothing_is_drawn_where_no_case_took_two_iterations(tmp_path):
    draw_iterations([ROW | {"iterations": 1.0}], [], dict, Shrinking(), torch.nn.Identity(), str(tmp_path))
    assert not list(tmp_path.iterdir())
