"""The numbers that evaluation reports: examples counted by hand, and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import overlap
from monai.metrics import DiceMetric, compute_confusion_matrix_metric, get_confusion_matrix
from scripts.evaluation.metrics import (
    average_precision,
    bootstrap_interval,
    counts_above,
    lesion_scores,
    overlap_from_counts,
    ssim_map,
    threshold_at_fraction,
)

SHAPE = (36, 40)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_ssim_of_an_image_with_itself_is_one_everywhere(rng):
    image = torch.from_numpy(rng.normal(size=(2, 3, *SHAPE)).astype(np.float32))
    similarity = ssim_map(image, image, 6.0)
    torch.testing.assert_close(similarity, torch.ones_like(image))


def test_overlap_counted_by_hand():
    label = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    pred_mask = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    scores = overlap(pred_mask, label)
    np.testing.assert_allclose(scores["dice"], [2 / 5, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["sensitivity"], [1 / 2, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["precision"], [1 / 3, 0, np.nan, np.nan])
    assert all(np.isnan(score) for score in overlap_from_counts(np.nan, np.nan, 5).values())


def test_overlap_agrees_with_monai_where_both_are_defined(rng):
    pred_mask, label = (rng.random((5, 1, *SHAPE)) > cut for cut in (0.6, 0.7))
    label[2] = False
    tensors = [torch.from_numpy(mask).float() for mask in (pred_mask, label)]
    scores, defined = overlap(pred_mask, label), [0, 1, 3, 4]
    np.testing.assert_allclose(scores["dice"], DiceMetric()(*tensors)[:, 0].numpy(), rtol=1e-6)
    for name in ("sensitivity", "precision"):
        expected = compute_confusion_matrix_metric(name, get_confusion_matrix(*tensors))[:, 0].numpy()
        np.testing.assert_allclose(scores[name][defined], expected[defined], rtol=1e-6)


def boxes(*places, shape=(12, 12, 12)):
    """A mask of boxes; a box is its first corner and its sides."""
    mask = np.zeros(shape, bool)
    for corner, sides in places:
        mask[tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))] = True
    return mask


LARGE, SMALL, FAR = ((0, 0, 0), (3, 2, 2)), ((6, 6, 6), (2, 2, 2)), ((9, 9, 0), (2, 2, 2))  # 12, 8 and 8 voxels


@pytest.mark.parametrize(
    ("marked", "labeled", "voxel_ml", "expected"),
    [
        ([LARGE], [LARGE, SMALL], 0.001, (1, 1, 1, 0, 1.0)),  # a lesion of 8 mm3 does not count
        ([SMALL], [LARGE, SMALL], 0.001, (1, 0, 1, 0, 0.0)),  # and what marks it is not false
        ([LARGE], [LARGE, SMALL], 0.00125, (2, 1, 1, 0, 2 / 3)),  # one of 10 mm3 does
        ([LARGE, FAR], [LARGE, SMALL], np.nan, (2, 1, 2, 1, 1 / 2)),
        ([((2, 1, 1), (1, 1, 1)), ((3, 2, 2), (1, 1, 1))], [LARGE], 0.001, (1, 1, 1, 0, 1.0)),  # joined by a corner
        ([((2, 1, 1), (1, 1, 1)), ((0, 0, 0), (1, 1, 1))], [LARGE], 0.001, (1, 1, 2, 0, 1.0)),  # two in one lesion
        ([((0, 0, 0), (12, 12, 12))], [LARGE, FAR], 0.01, (2, 2, 1, 0, 1.0)),  # one on two lesions
        ([FAR], [], 0.001, (0, 0, 1, 1, np.nan)),
        ([], [LARGE], 0.001, (1, 0, 0, 0, 0.0)),
    ],
)
def test_lesions_and_components_counted_by_hand(marked, labeled, voxel_ml, expected):
    found = lesion_scores(boxes(*marked), boxes(*labeled), voxel_ml)
    assert tuple(found.values()) == pytest.approx(expected, nan_ok=True)
    assert list(found) == ["lesions", "lesions_found", "components", "false_components", "lesion_f1"]


def test_pixels_of_a_slice_are_joined_by_their_corners():
    marked = boxes(((2, 2), (1, 1)), ((3, 3), (1, 1)), shape=(8, 8))
    assert lesion_scores(marked, ~marked)["components"] == lesion_scores(marked[None], ~marked[None])["components"] == 1


def counts(scores, label, inside, thresholds):
    return counts_above(scores[inside], thresholds, label[inside], np.ones(inside.sum(), bool))


def test_counts_above_equal_counting_each_mask(rng):
    scores, label, inside = rng.normal(size=SHAPE), rng.random(SHAPE) > 0.8, rng.random(SHAPE) > 0.3
    thresholds = np.sort(np.append(rng.normal(size=20), scores[0, :5]))  # some thresholds tie with scores
    hits, marked = counts(scores, label, inside, thresholds)
    masks = [(scores > threshold) & inside for threshold in thresholds]
    np.testing.assert_array_equal(marked, [mask.sum() for mask in masks])
    np.testing.assert_array_equal(hits, [(mask & label).sum() for mask in masks])


def exact_average_precision(scores, label):
    """Precision at each lesion pixel, going down from the highest score, averaged."""
    found = label[np.argsort(-scores)]
    return float((np.cumsum(found) / np.arange(1, len(found) + 1))[found].mean())


@pytest.mark.parametrize("exact", [True, False])
def test_average_precision_is_exact_when_every_score_is_a_threshold_and_close_on_a_grid(rng, exact):
    scores, label = rng.lognormal(size=5000), rng.random(5000) > 0.8
    scores[label] *= 3
    thresholds = np.append(-1, np.sort(scores) if exact else np.geomspace(1e-6, 1e4, 4094))
    found = average_precision(*counts(scores, label, scores > -1, thresholds), label.sum())
    assert found == pytest.approx(exact_average_precision(scores, label), abs=1e-9 if exact else 2e-3)


def test_average_precision_needs_a_lesion_and_counts_what_lies_outside_the_brain_as_missed():
    scores, label, inside = np.array([3.0, 2.0, 1.0, 9.0]), np.array([1, 0, 0, 1]) > 0, np.array([1, 1, 1, 0]) > 0
    found = counts(scores, label, inside, np.array([-1.0, 0.5, 1.5, 2.5]))
    assert average_precision(*found, 2) == pytest.approx(0.5)
    assert np.isnan(average_precision(*found, 0))


@pytest.mark.parametrize(("fraction", "number"), [(0.2, 0), (0.1, 1), (0.09, 2), (0.05, 2), (0.0, 3), (-0.1, 4)])
def test_threshold_of_a_fraction_is_the_lowest_that_marks_no_more(fraction, number):
    assert threshold_at_fraction(np.array([20, 10, 5, 0, 0]), 100, fraction) == number


@pytest.mark.parametrize("cases", [25, 100, 400])
def test_bootstrap_interval_holds_the_mean_and_is_that_of_95_percent(rng, cases):
    values = rng.normal(0.5, 0.1, size=cases)
    low, high = bootstrap_interval(values, resamples=20_000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(cases), rel=0.05)


def test_bootstrap_interval_comes_from_its_seed_alone(rng):
    values = rng.normal(size=50)
    state = np.random.get_state()[1].copy()
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(np.append(values, np.nan)) != bootstrap_interval(values, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([0, 1], (0, 1)),  # both means have a chance of a quarter
        ([0] * 99 + [100], (0, 3)),  # Poisson: 0 with a chance of 37 %, more than 3 with one of 1.8 %
        ([0.3, np.nan], (0.3, 0.3)),
        ([np.nan], (np.nan, np.nan)),
        ([], (np.nan, np.nan)),
    ],
)
def test_bootstrap_interval_known_by_reckoning(values, interval):
    assert bootstrap_interval(np.array(values)) == pytest.approx(interval, nan_ok=True)
