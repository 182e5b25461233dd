"""Joining the counts of cases to one summary: examples counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripts.evaluation.metrics import average_precision
from scripts.evaluation.summaries import (
    HealthyScores,
    healthy_words,
    mean,
    read_subsets,
    size_class_means,
    subset_means,
    summarize_score,
)


def test_size_classes_share_no_case():
    sizes = np.array([1, 199.9, 200, 799.9, 800, 5000])
    dice = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    means = size_class_means("dice", dice, sizes)
    assert means == pytest.approx({"dice_small": 0.1, "dice_medium": 0.5, "dice_large": 0.9})
    assert math.isnan(size_class_means("dice", dice[:2], sizes[:2])["dice_large"])


def test_average_precision_of_all_is_that_of_their_pixels_together():
    counts = np.array([[[4, 3, 1], [50, 10, 1]], [[9, 5, 0], [40, 8, 4]]])
    labeled, sizes, thresholds = np.array([4, 9]), np.array([300.0, 300.0]), np.array([0.0, 1.0, 2.0])
    summary = summarize_score(np.array([[3, 10], [5, 8]]), counts, labeled, sizes, thresholds)[1]
    expected = average_precision(np.array([13, 8, 1]), np.array([90, 18, 5]), 13)
    assert summary["average_precision"] == pytest.approx(expected)
    each = [average_precision(*case, size) for case, size in zip(counts, labeled, strict=True)]
    assert summary["average_precision_per_image"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("content", ["A\r\nB C\r\n", "\ufeffA  \n\nB C # two\n"])
def test_subset_files_of_every_editor(tmp_path, content):
    (tmp_path / "subset.txt").write_bytes(content.encode())
    assert read_subsets({"some": str(tmp_path / "subset.txt")}) == {"some": {"A", "B C"}}


def test_mean_leaves_out_what_is_undefined():
    assert mean([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean([math.nan])) and math.isnan(mean([]))


def test_healthy_scores_add_up_whoever_counted_them():
    first = HealthyScores(2, 50, 4, {"": np.array([3, 1])})
    second = HealthyScores(1, 30, 1, {"": np.array([2, 0]), "baseline_": np.array([5, 5])})
    total = sum((first, second), HealthyScores())
    assert (total.slices, total.brain_pixels, total.mask_pixels) == (3, 80, 5)
    assert {name: counts.tolist() for name, counts in total.counts.items()} == {"": [5, 1], "baseline_": [5, 5]}


def test_differences_of_a_subset_are_paired():
    dice = {"": np.array([0.9, 0.5, 0.1]), "baseline_": np.array([0.6, 0.4, math.nan])}
    found = subset_means(dice, np.array([True, True, False]), "small ones")
    assert found["cases_small ones"] == 2
    assert found["dice_small ones"] == pytest.approx(0.7)
    assert found["baseline_dice_small ones"] == pytest.approx(0.5)
    assert found["baseline_difference_small ones"] == pytest.approx((0.3 + 0.1) / 2)
    everywhere = subset_means(dice, np.array([True, True, True]), "")
    assert everywhere.keys() == {f"baseline_difference{end}" for end in ("", "_ci_low", "_ci_high")}


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ({"cases_without_lesion": 0}, ""),
        (
            {
                "cases_without_lesion": 1,
                "false_positive_pixels_without_lesion": 12.34,
                "false_positive_fraction_without_lesion": 0.00123,
            },
            "1 case without lesion: 12.3 pixels marked in each on average, 0.123% of the brain, all of it false.",
        ),
        (
            {
                "cases_without_lesion": 3,
                "false_positive_ml_without_lesion": 1.236,
                "false_positive_fraction_without_lesion": 0.01,
            },
            "3 cases without lesion: 1.24 ml marked in each on average, 1.000% of the brain, all of it false.",
        ),
    ],
)
def test_what_is_marked_without_a_lesion_is_told_in_the_unit_that_is_known(summary, words):
    assert healthy_words(summary) == words
