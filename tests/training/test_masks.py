import pytest
import torch
from scripts.method.scores import highest_fraction
from scripts.training.masks import random_squares


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coverage(mask, brain_mask):
    return mask.flatten(1).sum(dim=1) / brain_mask.flatten(1).sum(dim=1)


def test_stays_inside_the_brain(brain_mask):
    mask = random_squares(brain_mask, generator())
    assert mask.dtype == torch.bool and mask.shape == brain_mask.shape
    assert not (mask & ~brain_mask).any()
    assert mask[:3].flatten(1).any(dim=1).all()


def test_repeats_with_the_seed_alone(brain_mask):
    assert torch.equal(random_squares(brain_mask, generator(3)), random_squares(brain_mask, generator(3)))
    assert not torch.equal(random_squares(brain_mask, generator(3)), random_squares(brain_mask, generator(4)))


def test_leaves_the_global_random_state_alone(brain_mask):
    before = torch.get_rng_state()
    random_squares(brain_mask, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_squares_cover_what_the_published_ones_do():
    """17 % on average and never more than 55 %, for a brain that fills 30 % of a 240 x 240 slice."""
    rows, columns = torch.meshgrid(torch.arange(128) - 64, torch.arange(128) - 64, indexing="ij")
    brains = ((rows / 45) ** 2 + (columns / 35) ** 2 < 1)[None, None].repeat(400, 1, 1, 1)
    found = coverage(random_squares(brains, generator()), brains)
    assert found.mean() == pytest.approx(0.17, abs=0.03)
    assert found.max() < 0.6


def test_highest_fraction_marks_the_highest_pixels_of_each_slice():
    score = torch.arange(20.0).view(2, 1, 2, 5)
    region = torch.ones(2, 1, 2, 5, dtype=torch.bool)
    region[1, 0, 1, 4] = False
    found = highest_fraction(score, region, 0.6)
    assert found[0].flatten().nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert found[1].flatten().nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_highest_fraction_one_is_the_whole_region(brain_mask):
    assert torch.equal(highest_fraction(torch.zeros(brain_mask.shape), brain_mask, 1.0), brain_mask)
