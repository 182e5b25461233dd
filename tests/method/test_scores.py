"""Scores of pixels: smoothed inside the brain, and marked by fractions and thresholds."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.method.scores import (
    error_map,
    gaussian_matrix,
    gaussian_smooth,
    highest_fraction,
    hysteresis,
    with_neighbors,
)


def test_hysteresis_keeps_components_that_reach_the_upper_threshold():
    score = torch.nn.functional.avg_pool2d(
        torch.randn(3, 1, 60, 50, generator=torch.Generator().manual_seed(0)), 3, 1, 1
    )
    found = hysteresis(score, 0.2, 0.8)
    for plane, marked in zip(score[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        labels, _ = ndimage.label(plane > 0.2, np.ones((3, 3)))
        expected = np.isin(labels, np.unique(labels[plane > 0.8])) & (plane > 0.2)
        assert marked.any() and np.array_equal(marked, expected)


def test_error_map_averages_modalities_and_is_zero_outside_the_brain(image, brain_mask):
    two = torch.cat([image, image], dim=1)
    reconstruction = two + torch.tensor([1.0, 3.0])[None, :, None, None]
    found = error_map(two, reconstruction, brain_mask)
    torch.testing.assert_close(found, 5.0 * brain_mask)


def test_smoothing_keeps_a_constant_up_to_the_border_of_the_brain(brain_mask):
    constant = torch.full(brain_mask.shape, 2.0)
    torch.testing.assert_close(gaussian_smooth(constant, brain_mask, 1.5), 2.0 * brain_mask)


@pytest.mark.parametrize("sigma", [0.4, 1.3, 3.0])
def test_matrix_smooths_a_row_as_scipy_does(sigma):
    row = np.random.default_rng(0).normal(size=23).astype(np.float32)
    expected = ndimage.gaussian_filter1d(row, sigma, mode="constant", truncate=4.0)
    found = gaussian_matrix(23, sigma, torch.zeros(1)) @ torch.from_numpy(row)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("fraction", "marked"), [(0.0, 0), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_fraction_marks_the_highest_scores_of_the_region(fraction, marked):
    region = torch.zeros(1, 1, 3, 5, dtype=torch.bool)
    region[..., :2, :] = True
    score = torch.arange(15.0).view(1, 1, 3, 5)  # the highest scores lie outside the region
    found = highest_fraction(score, region, fraction)
    assert found.flatten().nonzero()[:, 0].tolist() == list(range(10 - marked, 10))


def test_pixels_that_tie_with_the_last_one_left_out_are_left_out():
    score = torch.tensor([1.0, 2.0, 2.0, 3.0]).view(1, 1, 1, 4)
    assert highest_fraction(score, torch.ones_like(score) > 0, 0.5).flatten().tolist() == [False, False, False, True]


def test_neighbors_are_the_eight_around_a_pixel():
    mask = torch.rand(2, 1, 9, 11, generator=torch.Generator().manual_seed(1)) > 0.9
    for plane, found in zip(mask[:, 0].numpy(), with_neighbors(mask)[:, 0].numpy(), strict=True):
        assert np.array_equal(found, ndimage.binary_dilation(plane, np.ones((3, 3))))
