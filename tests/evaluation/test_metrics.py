"""The numbers that evaluation reports: examples counted by hand, and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, compute_confusion_matrix_metric, get_confusion_matrix
from scripts.evaluation.metrics import (
    average_precision,
    bootstrap_interval,
    overlap,
    overlap_from_counts,
    ssim_map,
    threshold_at_fraction,
    threshold_counts,
)

SHAPE = (36, 40)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_ssim_of_an_image_with_itself_is_one_everywhere(rng):
    image = torch.from_numpy(rng.normal(size=(2, 3, *SHAPE)).astype(np.float32))
    similarity = ssim_map(image, image, 6.0)
    assert similarity.shape == image.shape
    torch.testing.assert_close(similarity, torch.ones_like(similarity))


def test_overlap_counted_by_hand():
    label = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    pred_mask = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    scores = overlap(pred_mask, label)
    np.testing.assert_allclose(scores["dice"], [2 / 5, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["sensitivity"], [1 / 2, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["precision"], [1 / 3, 0, np.nan, np.nan])


def test_overlap_agrees_with_monai_where_both_are_defined(rng):
    pred_mask, label = (rng.random((5, 1, *SHAPE)) > cut for cut in (0.6, 0.7))
    label[2] = False
    tensors = [torch.from_numpy(mask).float() for mask in (pred_mask, label)]
    scores, defined = overlap(pred_mask, label), [0, 1, 3, 4]
    np.testing.assert_allclose(scores["dice"], DiceMetric()(*tensors)[:, 0].numpy(), rtol=1e-6)
    for name in ("sensitivity", "precision"):
        expected = compute_confusion_matrix_metric(name, get_confusion_matrix(*tensors))[:, 0].numpy()
        np.testing.assert_allclose(scores[name][defined], expected[defined], rtol=1e-6)


def test_overlap_refuses_different_shapes():
    with pytest.raises(ValueError, match="same shape"):
        overlap(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)))


def test_a_perfect_mask_scores_one(rng):
    label = rng.random((3, *SHAPE)) > 0.5
    for score in overlap(label, label).values():
        np.testing.assert_array_equal(score, 1)


def test_threshold_counts_equal_counting_each_mask(rng):
    scores, label, brain_mask = rng.normal(size=SHAPE), rng.random(SHAPE) > 0.8, rng.random(SHAPE) > 0.3
    thresholds = np.sort(np.append(rng.normal(size=20), scores[0, :5]))  # some thresholds tie with scores
    hits, marked = threshold_counts(scores, label, brain_mask, thresholds)
    masks = [(scores > threshold) & brain_mask for threshold in thresholds]
    np.testing.assert_array_equal(marked, [mask.sum() for mask in masks])
    np.testing.assert_array_equal(hits, [(mask & label).sum() for mask in masks])


def exact_average_precision(scores: np.ndarray, label: np.ndarray) -> float:
    """Precision at each lesion pixel, going down from the highest score, averaged."""
    found = label[np.argsort(-scores)]
    return float((np.cumsum(found) / np.arange(1, len(found) + 1))[found].mean())


def test_average_precision_is_exact_when_every_score_is_a_threshold(rng):
    scores, label = rng.normal(size=500), rng.random(500) > 0.7
    scores[label] += 1
    thresholds = np.concatenate([[-100.0], np.sort(scores)])
    counts = threshold_counts(scores, label, np.ones(500), thresholds)
    assert average_precision(*counts, label.sum()) == pytest.approx(exact_average_precision(scores, label))


def test_average_precision_on_a_grid_is_close(rng):
    scores, label = rng.lognormal(size=20_000), rng.random(20_000) > 0.9
    scores[label] *= 3
    counts = threshold_counts(scores, label, np.ones(20_000), np.append(-1, np.geomspace(1e-6, 1e4, 4094)))
    assert average_precision(*counts, label.sum()) == pytest.approx(exact_average_precision(scores, label), abs=2e-3)


def test_average_precision_needs_a_lesion_and_counts_what_lies_outside_the_brain_as_missed():
    scores, label = np.array([3.0, 2.0, 1.0, 9.0]), np.array([1, 0, 0, 1])
    thresholds = np.array([-1.0, 0.5, 1.5, 2.5])
    counts = threshold_counts(scores, label, np.array([1, 1, 1, 0]), thresholds)
    assert average_precision(*counts, 2) == pytest.approx(0.5)
    assert np.isnan(average_precision(*counts, 0))


@pytest.mark.parametrize("fraction", [0.0, 0.013, 0.2, 1.0])
def test_threshold_at_fraction_marks_what_was_asked(rng, fraction):
    scores = rng.normal(size=100_000).astype(np.float32)
    thresholds = np.concatenate([[-1000.0], np.linspace(-10, 30, 4001)])
    marked = threshold_counts(scores, np.zeros(scores.shape), np.ones(scores.shape), thresholds)[1]
    threshold = threshold_at_fraction(marked, scores.size, fraction, thresholds)
    reached = (scores > threshold).mean()
    assert fraction - 0.005 <= reached <= fraction


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
        ([0.3] * 5, (0.3, 0.3)),
        ([0.3, np.nan], (0.3, 0.3)),
        ([np.nan], (np.nan, np.nan)),
        ([], (np.nan, np.nan)),
    ],
)
def test_bootstrap_interval_known_by_reckoning(values, interval):
    assert bootstrap_interval(np.array(values)) == pytest.approx(interval, nan_ok=True)


def test_undefined_counts_give_undefined_scores():
    for score in overlap_from_counts(np.array([np.nan]), np.array([np.nan]), np.array([5])).values():
        assert np.isnan(score).all()


@pytest.mark.parametrize(("fraction", "threshold"), [(0.2, 0.0), (0.1, 1.0), (0.09, 2.0), (0.05, 2.0), (0.0, 3.0)])
def test_threshold_of_a_fraction_is_the_lowest_that_marks_no_more(fraction, threshold):
    marked, thresholds = np.array([20, 10, 5, 0, 0]), np.arange(5.0)
    assert threshold_at_fraction(marked, 100, fraction, thresholds) == threshold
