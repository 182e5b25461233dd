"""The threshold where the mask of a subject stops to shrink fast, on brains whose curves are known."""

import numpy as np
import pytest
import torch
from scripts.method import threshold_rule as r

HIGHEST = -0.5
BRAIN = 400_000


def brain_with(lesion_voxels, spread=4.0, rate=1.25):
    """Logits whose normal part is an e-th every 1 / ``rate``, and a lesion evenly from -5 up over ``spread`` logits."""
    parts = (np.arange(BRAIN) + 0.5) / BRAIN
    normal = -6 - np.log(parts) / rate
    lesion = -5 + spread * (np.arange(lesion_voxels) + 0.5) / max(1, lesion_voxels)
    return torch.from_numpy(np.concatenate([normal, lesion])).float()


def by_definition(logit, highest):
    """The rule as its docstring says it, one threshold after another."""
    h, steepest = r.SPAN * r.STEP, 0.0
    for step in range(r.SPAN, round((highest - r.FIRST) / r.STEP) + 1):
        t = r.FIRST + r.STEP * step
        below, above = (max(1, int((logit.double() > value).sum())) for value in (t - h, t + h))
        slope = np.log(below / above)
        steepest = max(steepest, slope)
        if t > r.LOWEST - 1e-6 and slope <= r.FLAT * steepest and above >= r.LEAST:
            return min(t, highest)
    return highest


@pytest.mark.parametrize("voxels", [0, 300, 3000, 30_000])
@pytest.mark.parametrize("spread", [6.0, 12.0])
def test_it_is_the_first_place_of_its_definition(voxels, spread):
    logit = brain_with(voxels, spread)
    assert r.slope_threshold(logit, HIGHEST) == pytest.approx(by_definition(logit, HIGHEST))


def test_slope_of_a_healthy_brain_does_not_end():
    assert r.slope_threshold(brain_with(0), HIGHEST) == HIGHEST


@pytest.mark.parametrize("logit", [torch.full((1000,), -6.0), torch.zeros(1), torch.full((1000,), 3.0), torch.zeros(0)])
def test_empty_and_even_maps_get_no_lower_threshold_than_allowed(logit):
    assert r.LOWEST - 1e-6 <= r.slope_threshold(logit, HIGHEST) <= HIGHEST


def test_map_without_anything_above_gets_the_highest():
    assert r.slope_threshold(torch.full((1000,), -6.0), HIGHEST) == HIGHEST


def test_few_voxels_are_no_plateau():
    few, enough = (brain_with(0, rate=3.0).clamp(max=-4.5) for _ in range(2))
    few[: r.LEAST - 1], enough[: r.LEAST] = 5.0, 5.0
    assert r.slope_threshold(few, HIGHEST) == HIGHEST and r.slope_threshold(enough, HIGHEST) < HIGHEST


def test_more_lesion_never_raises_the_threshold_and_lowest_is_reached():
    found = [r.slope_threshold(brain_with(voxels, 12.0), HIGHEST) for voxels in (0, 1000, 3000, 10_000, 40_000)]
    assert found == sorted(found, reverse=True) and found[0] == HIGHEST and found[-1] == pytest.approx(r.LOWEST)


def test_order_and_type_of_voxels_change_nothing():
    logit = brain_with(3000, 12.0)
    shuffled = logit[torch.from_numpy(np.random.default_rng(0).permutation(len(logit)))]
    assert r.slope_threshold(shuffled, HIGHEST) == r.slope_threshold(logit, HIGHEST)
    assert r.slope_threshold(logit.double(), HIGHEST) == pytest.approx(r.slope_threshold(logit, HIGHEST), abs=0.11)
