"""Pictures of slices and cases."""

import numpy as np
import pytest
from PIL import Image
from scripts.evaluation.pictures import LABEL_COLOR, PRED_COLOR, Panel, draw, draw_case, to_display


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def colored(pixels):
    """Pixels that are far from gray."""
    return np.ptp(pixels, axis=-1) > 100


def test_slice_is_shown_front_up_with_the_patient_s_right_on_the_left():
    plane = np.zeros((3, 5))  # RAS: rows grow to the right of the patient, columns to the front
    plane[2, 4] = 1  # the patient's right, front
    shown = to_display(plane)
    assert shown.shape == (5, 3) and shown[0, 0] == 1


def test_panels_stand_side_by_side_with_levels_of_the_first_and_outlines_of_their_own(tmp_path):
    plane = np.random.default_rng(0).uniform(1, 2, (40, 30))
    mask = np.zeros((40, 30), bool)
    mask[10:20, 5:15] = True
    marks = {PRED_COLOR: mask, LABEL_COLOR: np.zeros_like(mask)}
    panels = [Panel("first", plane), Panel("below", plane - 1), Panel("own", plane - 1, levels=(-1, 0))]
    draw([("one", [*panels, Panel("outline", plane, marks)]), ("two", panels[:1])], tmp_path / "picture.png")
    pixels = pixels_of(tmp_path / "picture.png")
    assert pixels.shape[1] == 1000
    first, below, own, outline = np.array_split(pixels[60:230], 4, axis=1)
    assert below.mean() < 0.1 * first.mean() and own.mean() > 1.3 * first.mean()
    assert colored(outline).any() and not any(colored(part).any() for part in (first, below, own))


@pytest.mark.parametrize("mask", [np.ones((20, 24)), np.zeros((20, 24))], ids=["all", "nothing"])
def test_constant_slice_and_any_mask_are_drawn(tmp_path, mask):
    draw([("", [Panel("", np.ones((20, 24)), {"red": mask})])], tmp_path / "picture.png")
    assert colored(pixels_of(tmp_path / "picture.png")).any() == mask.any()


@pytest.mark.parametrize("reconstructs", [False, True])
def test_picture_of_a_case_shows_a_reconstruction_where_there_is_one(tmp_path, reconstructs):
    random = np.random.default_rng(0)
    planes = {name: np.ones((1, 24, 24)) for name in ("brain_mask", "label", "pred_mask")}
    planes |= {"image": random.normal(size=(2, 24, 24)), "anomaly_map": random.uniform(size=(1, 24, 24))}
    if reconstructs:
        planes["reconstruction"] = planes["image"]
    draw_case(planes, ["flair", "t1"], "case", tmp_path / "case.png")
    height, width, _ = pixels_of(tmp_path / "case.png").shape
    panels = 4 if reconstructs else 3
    assert width == 1000 and height == pytest.approx(60 + 30 + 2 * 1000 / panels, abs=2)
