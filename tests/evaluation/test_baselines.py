"""The intensity as a score: standard deviations in each brain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.evaluation.baselines import IteratedZScoreBaseline, ZScoreBaseline, zscore
from scripts.method.scores import gaussian_smooth

SHAPE = (36, 40)


@pytest.fixture
def brain_mask():
    mask = torch.zeros(3, 1, *SHAPE, dtype=torch.bool)
    mask[:, :, 5:30, 6:33] = True
    return mask


@pytest.fixture
def image():
    random = np.random.default_rng(7)
    return torch.from_numpy(random.normal(10, 4, size=(3, 2, *SHAPE)).astype(np.float32))


def test_zscore_has_mean_zero_and_deviation_one_inside_each_brain(image, brain_mask):
    scores = zscore(image, brain_mask)
    inside = scores[brain_mask.expand_as(scores)].reshape(3, 2, -1)
    torch.testing.assert_close(inside.mean(dim=-1), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(dim=-1, correction=0), torch.ones(3, 2))
    assert (scores[~brain_mask.expand_as(scores)] == 0).all()


def test_zscore_of_an_empty_or_constant_brain_is_zero(image, brain_mask):
    brain_mask[0] = False
    image[1] = 3.0
    assert (zscore(image, brain_mask)[:2] == 0).all()


@pytest.mark.parametrize("sigma", [0.0, 1.3])
def test_baselines_ignore_scale_shift_and_what_lies_outside_the_brain(image, brain_mask, make_sample, sigma):
    baseline = ZScoreBaseline(sigma=sigma)
    expected = baseline(make_sample(image, brain_mask))
    assert expected.shape == brain_mask.shape
    other = torch.where(brain_mask, image * 5 - 2, torch.full_like(image, 77.0))
    torch.testing.assert_close(baseline(make_sample(other, brain_mask)), expected, atol=1e-4, rtol=1e-4)


def test_only_the_absolute_baseline_finds_a_dark_lesion(image, brain_mask, make_sample):
    lesion = torch.zeros_like(brain_mask)
    lesion[:, :, 10:16, 10:16] = True
    sample = make_sample(torch.where(lesion, -20.0, image[:, :1]), brain_mask)
    bright, absolute = (ZScoreBaseline(absolute=absolute)(sample) for absolute in (False, True))
    rest = brain_mask & ~lesion
    assert absolute[lesion].min() > absolute[rest].max()
    assert bright[lesion].max() < bright[rest].min()


@pytest.mark.parametrize(("grid", "sigma"), [((128, 128), 2.0), ((256, 200), 4.0), ((64, 64), 1.0)])
def test_smoothing_of_a_baseline_grows_with_the_grid_of_the_whole_slice(image, brain_mask, make_sample, grid, sigma):
    expected = gaussian_smooth(zscore(image, brain_mask), brain_mask, sigma).mean(dim=1, keepdim=True)
    found = ZScoreBaseline(sigma=2.0)(make_sample(image, brain_mask, grid=grid))
    torch.testing.assert_close(found, expected)


@pytest.fixture
def lesioned():
    """A brain with noise of deviation 2 around 50, of which a fifth is 60 brighter: (12, 1, 30, 30)."""
    brain = torch.zeros(12, 1, 30, 30, dtype=torch.bool)
    brain[1:-1, :, 2:-2, 2:-2] = True
    lesion = brain & (torch.arange(30) < 7)
    noise = torch.randn(12, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    return torch.where(brain, 50 + 2 * noise + 60 * lesion, 0.0), brain, lesion


def test_iterated_zscore_is_in_deviations_of_what_is_not_marked(lesioned, make_sample):
    image, brain, lesion = lesioned
    scores = IteratedZScoreBaseline(sigma=0)(make_sample(image, brain))
    marked = scores > 2.5
    healthy = image[brain & ~marked]
    deviation = 1.4826 * (healthy - healthy.median()).abs().median()
    assert torch.allclose(scores[brain], (image[brain] - healthy.median()) / deviation, atol=0.02)
    assert marked[lesion].all() and float(marked[brain & ~lesion].float().mean()) < 0.02
    assert not scores[~brain].any()


def test_iterated_zscore_smooths_in_mm_inside_the_brain(lesioned, make_sample):
    _, brain, _ = lesioned
    flat = torch.where(brain, 50.0 + torch.arange(12.0).view(12, 1, 1, 1), 0.0)
    thin, thick = (IteratedZScoreBaseline(1.5)(make_sample(flat, brain, spacing=(mm, 1, 1))) for mm in (1, 5))
    across = [scores[1:11, 0, 15, 15].diff() for scores in (thin, thick)]
    assert across[0][0] < 0.8 * across[1][0]  # thick slices are hardly mixed
    assert torch.allclose(thin[5, 0, 2:-2, 2:-2], thin[5, 0, 15, 15], atol=1e-3)  # no background is


def test_iterated_zscore_of_nothing_and_of_a_constant_brain_is_0(lesioned, make_sample):
    image, brain, _ = lesioned
    for volume, inside in ((image, torch.zeros_like(brain)), (brain.float(), brain)):
        assert not IteratedZScoreBaseline()(make_sample(volume, inside)).any()
