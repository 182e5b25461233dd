"""Pictures of cases, pixel by pixel."""

import numpy as np
import pytest
from scripts.evaluation.pictures import brain_box, case_picture, enlarge, gray, heat, outline, tile, to_display


def test_slice_is_shown_front_up_with_the_patient_s_right_on_the_left():
    plane = np.zeros((3, 5))  # RAS: rows grow to the right of the patient, columns to the front
    plane[2, 4] = 1  # the patient's right, front
    shown = to_display(plane)
    assert shown.shape == (5, 3) and shown[0, 0] == 1


def test_gray_is_black_at_the_low_end_and_white_at_the_high_one():
    shown = gray(np.array([[-9.0, 0.0, 1.0, 2.0, 9.0]]), 0.0, 2.0)
    assert shown.shape == (1, 5, 3) and shown.dtype == np.uint8
    assert shown[0, :, 1].tolist() == [0, 0, 127, 255, 255]
    assert not gray(np.ones((1, 1)), 1.0, 1.0).any()


def test_heat_goes_from_black_to_pale_yellow_and_grows_lighter():
    shown = heat(np.linspace(0, 1, 50)[None], 1.0)[0].astype(float)
    assert shown[0].max() < 5 and shown[-1].min() > 160
    assert (np.diff(shown @ [0.2126, 0.7152, 0.0722]) >= 0).all()


def test_outline_is_the_inner_border():
    mask = np.zeros((7, 8))
    mask[1:6, 2:7] = 1
    drawn = outline(np.zeros((7, 8, 3), np.uint8), mask, (1, 2, 3))
    border = mask.astype(bool)
    border[2:5, 3:6] = False
    assert np.array_equal(drawn, border[..., None] * np.array([1, 2, 3]))


@pytest.mark.parametrize(("shape", "factor"), [((3, 5), 4), ((10, 5), 2), ((40, 7), 1)])
def test_pixels_are_repeated_by_a_whole_factor(shape, factor):
    plane = np.random.default_rng(0).integers(0, 9, (*shape, 3))
    assert np.array_equal(enlarge(plane, 20), np.kron(plane, np.ones((factor, factor, 1), int)))


def test_box_holds_brain_label_and_mask_with_a_margin():
    planes = {name: np.zeros((20, 30)) for name in ("brain_mask", "label", "pred_mask")}
    assert brain_box(planes) == (slice(0, 20), slice(0, 30))
    planes["brain_mask"][8, 10] = planes["label"][5, 12] = planes["pred_mask"][9, 1] = 1
    assert brain_box(planes) == (slice(2, 13), slice(0, 16))


def test_panels_stand_in_rows_with_room_for_captions():
    panels = [("first", np.full((10, 20, 3), 200, np.uint8)), ("second", np.full((6, 8, 3), 100, np.uint8))]
    picture = tile([panels, panels[:1]], "title")
    assert picture.size == (20 + 8 + 3 * 4, 16 + 2 * (10 + 16 + 4))
    pixels = np.asarray(picture)
    assert (pixels[32:42, 4:24] == 200).all() and (pixels[32:38, 28:36] == 100).all()


@pytest.mark.parametrize(("reconstructs", "panels"), [(False, 3), (True, 4)])
def test_picture_of_a_case_shows_a_reconstruction_where_there_is_one(reconstructs, panels):
    random = np.random.default_rng(0)
    planes = {name: np.ones((1, 24, 24)) for name in ("brain_mask", "label", "pred_mask")}
    planes |= {"image": random.normal(size=(2, 24, 24)), "anomaly_map": random.uniform(size=(1, 24, 24))}
    if reconstructs:
        planes["reconstruction"] = planes["image"]
    picture = case_picture(planes, ["flair", "t1"], "case", panel_size=48)
    assert picture.size == (panels * (48 + 4) + 4, 16 + 2 * (48 + 16 + 4))
