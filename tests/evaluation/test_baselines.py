"""The intensity as a score: standard deviations in each brain, or at each place of an atlas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.evaluation.baselines import AtlasBaseline, IteratedZScoreBaseline, ZScoreBaseline, zscore
from scripts.method.scores import gaussian_smooth

SHAPE = (36, 40)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def brain_and_image(rng: np.random.Generator, modalities: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    brain_mask = torch.zeros(3, 1, *SHAPE, dtype=torch.bool)
    brain_mask[:, :, 5:30, 6:33] = True
    image = torch.from_numpy(rng.normal(10, 4, size=(3, modalities, *SHAPE)).astype(np.float32))
    return image, brain_mask


def test_zscore_has_mean_zero_and_deviation_one_inside_each_brain(rng):
    image, brain_mask = brain_and_image(rng)
    scores = zscore(image, brain_mask)
    inside = scores[brain_mask.expand_as(scores)].reshape(3, 2, -1)
    torch.testing.assert_close(inside.mean(dim=-1), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.std(dim=-1, correction=0), torch.ones(3, 2))
    assert (scores[~brain_mask.expand_as(scores)] == 0).all()


def test_zscore_of_an_empty_or_constant_brain_is_zero(rng):
    image, brain_mask = brain_and_image(rng)
    brain_mask[0] = False
    image[1] = 3.0
    assert (zscore(image, brain_mask)[:2] == 0).all()


@pytest.mark.parametrize("sigma", [0.0, 1.3])
def test_baselines_ignore_scale_shift_and_what_lies_outside_the_brain(rng, sigma):
    image, brain_mask = brain_and_image(rng)
    baseline = ZScoreBaseline(sigma=sigma)
    expected = baseline(image, brain_mask)
    assert expected.shape == brain_mask.shape
    other = torch.where(brain_mask, image * 5 - 2, torch.full_like(image, 77.0))
    torch.testing.assert_close(baseline(other, brain_mask), expected, atol=1e-4, rtol=1e-4)


def test_only_the_absolute_baseline_finds_a_dark_lesion(rng):
    image, brain_mask = brain_and_image(rng, modalities=1)
    image[:, :, 10:16, 10:16] = -20
    lesion = torch.zeros_like(brain_mask)
    lesion[:, :, 10:16, 10:16] = True
    bright, absolute = (ZScoreBaseline(absolute=absolute)(image, brain_mask) for absolute in (False, True))
    rest = brain_mask & ~lesion
    assert absolute[lesion].min() > absolute[rest].max()
    assert bright[lesion].max() < bright[rest].min()


def test_atlas_finds_what_is_bright_for_its_place_alone(rng):
    brain = torch.ones(1, 32, 32)
    usual = torch.zeros(1, 32, 32)
    usual[:, 4:12, 4:12] = 5.0
    training = [
        torch.cat([usual + torch.as_tensor(rng.normal(size=(1, 32, 32)), dtype=torch.float32), brain])
        for _ in range(30)
    ]
    atlas = AtlasBaseline([{"image": one} for one in training], dict, sigma=0)
    lesion = usual[None].clone()
    lesion[..., 20:26, 20:26] = 3.0
    scores = atlas(lesion, brain[None] > 0)
    assert scores[..., 21:25, 21:25].min() > 2
    assert scores[..., 5:11, 5:11].max() < 1
    with pytest.raises(ValueError, match="one grid"):
        atlas(lesion[..., :16], brain[None, :, :, :16] > 0)


@pytest.mark.parametrize(("size", "sigma"), [((128, 128), 2.0), ((256, 200), 4.0), ((64, 64), 1.0)])
def test_smoothing_of_a_baseline_grows_with_the_grid(size, sigma):
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    brain_mask = torch.ones_like(image, dtype=torch.bool)
    expected = gaussian_smooth(zscore(image, brain_mask), brain_mask, sigma)
    torch.testing.assert_close(ZScoreBaseline(sigma=2.0)(image, brain_mask), expected)


def test_atlas_measures_deviations_from_the_mean_of_each_place():
    brain = torch.zeros(1, 24, 24)
    brain[:, 4:20, 4:20] = 1
    usual = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(0)) * 2
    atlas = AtlasBaseline([{"image": torch.cat([usual, brain])}] * 3, dict, sigma=0)
    image, brain_mask = usual[None], brain[None] > 0
    scores = zscore(image, brain_mask)
    variance = gaussian_smooth(scores.square(), torch.ones_like(brain_mask), 1.5)
    mean = gaussian_smooth(scores, torch.ones_like(brain_mask), 1.5)
    middle = (..., slice(10, 14), slice(10, 14))  # three slices count as one or more everywhere here
    expected = (scores - mean) / (variance - mean.square() + 0.05).sqrt()
    torch.testing.assert_close(atlas(image, brain_mask)[middle], expected[middle], rtol=1e-3, atol=1e-3)
    other = torch.where(brain_mask, image, torch.tensor(99.0))
    assert (atlas(other, brain_mask)[~brain_mask] == 0).all()


@pytest.fixture
def lesioned():
    """A brain with noise of deviation 2 around 50, of which a fifth is 60 brighter: (12, 1, 30, 30)."""
    brain = torch.zeros(12, 1, 30, 30, dtype=torch.bool)
    brain[1:-1, :, 2:-2, 2:-2] = True
    lesion = brain & (torch.arange(30) < 7)
    noise = torch.randn(12, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    return torch.where(brain, 50 + 2 * noise + 60 * lesion, 0.0), brain, lesion


def test_iterated_zscore_is_in_deviations_of_what_is_not_marked(lesioned):
    image, brain, lesion = lesioned
    scores = IteratedZScoreBaseline(sigma=0)(image, brain, (1, 1, 1))
    marked = scores > 2.5
    healthy = image[brain & ~marked]
    deviation = 1.4826 * (healthy - healthy.median()).abs().median()
    assert torch.allclose(scores[brain], (image[brain] - healthy.median()) / deviation, atol=0.02)
    assert marked[lesion].all() and float(marked[brain & ~lesion].float().mean()) < 0.02
    assert not scores[~brain].any()


def test_iterated_zscore_smooths_in_mm_inside_the_brain(lesioned):
    image, brain, _ = lesioned
    flat = torch.where(brain, 50.0 + torch.arange(12.0).view(12, 1, 1, 1), 0.0)
    thin, thick = (IteratedZScoreBaseline(1.5)(flat, brain, (mm, 1, 1)) for mm in (1, 5))
    across = [scores[1:11, 0, 15, 15].diff() for scores in (thin, thick)]
    assert across[0][0] < 0.8 * across[1][0]  # thick slices are hardly mixed
    assert torch.allclose(thin[5, 0, 2:-2, 2:-2], thin[5, 0, 15, 15], atol=1e-3)  # no background is


def test_iterated_zscore_of_nothing_and_of_a_constant_brain_is_0(lesioned):
    image, brain, _ = lesioned
    for volume, inside in ((image, torch.zeros_like(brain)), (brain.float(), brain)):
        assert not IteratedZScoreBaseline()(volume, inside, (1, 1, 1)).any()
