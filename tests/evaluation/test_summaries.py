"""Joining the counts of cases to one summary: examples counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripts.evaluation.metrics import average_precision
from scripts.evaluation.summaries import (
    MAP_THRESHOLDS,
    group_means,
    healthy_words,
    mean,
    read_subsets,
    summarize_score,
)


def test_thresholds_of_maps_tell_apart_probabilities_near_1_and_errors_of_any_size():
    assert (np.diff(MAP_THRESHOLDS) > 0).all() and MAP_THRESHOLDS[-1] == pytest.approx(1e4)
    for score in (0.001, 1.0, 50.0):
        assert ((score * 0.99 < MAP_THRESHOLDS) & (score > MAP_THRESHOLDS)).any()
    assert ((MAP_THRESHOLDS > 0.9999) & (MAP_THRESHOLDS < 1)).any()


def test_scores_over_thresholds_are_those_of_all_pixels_or_of_the_mean_case():
    counts = np.array([[[4, 3, 1], [50, 10, 1]], [[9, 5, 0], [40, 8, 4]]])
    labeled, thresholds = np.array([4, 9]), np.array([0.0, 1.0, 2.0])
    columns, summary, curve = summarize_score(np.array([[3, 10], [5, 8]]), counts, labeled, thresholds)
    expected = average_precision(np.array([13, 8, 1]), np.array([90, 18, 5]), 13)
    assert summary["average_precision"] == pytest.approx(expected)
    each = [[2 * 4 / 54, 6 / 14, 2 / 5], [18 / 49, 10 / 17, 0]]
    np.testing.assert_allclose(curve["dice"], np.mean(each, axis=0))
    assert summary["best_threshold"] == 1 and summary["dice_best_threshold"] == pytest.approx((6 / 14 + 10 / 17) / 2)
    np.testing.assert_allclose(columns["dice_per_image_best"], np.max(each, axis=1))


@pytest.mark.parametrize("content", ["A\r\nB C\r\n", "\ufeffA  \n\nB C # two\n"])
def test_subset_files_of_every_editor(tmp_path, content):
    (tmp_path / "subset.txt").write_bytes(content.encode())
    assert read_subsets({"some": str(tmp_path / "subset.txt")}) == {"some": {"A", "B C"}}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("small", ValueError, "`subsets` must not use the names small, medium, large"),
        ("visible", FileNotFoundError, "none.txt: give a text file with one case name a line"),
    ],
)
def test_subset_of_a_taken_name_or_without_file_is_refused(tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        read_subsets({name: str(tmp_path / "none.txt")})


def test_mean_leaves_out_what_is_undefined():
    assert mean([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean([math.nan])) and math.isnan(mean([]))


def test_differences_of_a_group_are_paired():
    dice = {"": np.array([0.9, 0.5, 0.1]), "baseline_": np.array([0.6, 0.4, math.nan])}
    found = group_means(dice, np.array([True, True, False]), "small ones")
    assert found["cases_small ones"] == 2
    assert found["dice_small ones"] == pytest.approx(0.7)
    assert found["baseline_dice_small ones"] == pytest.approx(0.5)
    assert found["baseline_difference_small ones"] == pytest.approx((0.3 + 0.1) / 2)
    everywhere = group_means(dice, np.array([True, True, True]), "")
    assert everywhere["cases"] == 3 and everywhere["baseline_difference"] == pytest.approx((0.3 + 0.1) / 2)


@pytest.mark.parametrize(
    ("number", "values", "words"),
    [
        (0, {}, ""),
        (1, {"pixels": 12.34, "fraction": 0.00123}, "1 case without lesion: 12.3 pixels marked in each on average, "),
        (3, {"ml": 1.236, "fraction": 0.01}, "3 cases without lesion: 1.24 ml marked in each on average, 1.000% of"),
    ],
)
def test_what_is_marked_without_a_lesion_is_told_in_the_unit_that_is_known(number, values, words):
    marked = {f"false_positive_{name}_without_lesion": value for name, value in values.items()}
    found = healthy_words({"cases_without_lesion": number, **marked})
    assert found.startswith(words) and bool(found) == bool(words)
