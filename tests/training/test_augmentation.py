"""Random changes of place, contrast and quality."""

import pytest
import torch
from scripts.training.augmentation import (
    random_appearance,
    random_deformation,
    random_quality,
)

SIZE = (48, 64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def brains():
    """Brain masks of 200 slices (200, 1, 48, 64), bool, an ellipse each."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    return (rows**2 + columns**2 < 0.5).expand(200, 1, *SIZE)


def test_slices_are_scaled_moved_and_flipped_around_their_middle(brains):
    moved = random_deformation(brains.float(), generator()) > 0.5
    area = moved.flatten(1).sum(dim=1) / brains[0].sum()
    assert area.median() == pytest.approx(1, abs=0.1) and area.min() > 0.6 and area.max() < 1.5 and area.std() > 0.05
    top = torch.zeros(200, 1, *SIZE)
    top[:, :, :24] = 1
    assert 60 < int((random_deformation(top, generator())[:, :, :16].mean(dim=(1, 2, 3)) > 0.5).sum()) < 140


def test_contrast_keeps_the_order_of_neighboring_tissues():
    image = torch.zeros(100, 1, *SIZE)
    image[:, :, 20:28, 28:36] = 2
    changed = random_appearance(image, generator())
    step = changed[:, 0, 24, 32] - changed[:, 0, 24, 24]
    assert (step > 0.4).all() and step.std() > 0.1 and step.max() < 5


def test_quality_is_that_of_one_scan_with_and_without_lesions(brains):
    healthy = torch.zeros(200, 1, *SIZE)
    lesioned = healthy.clone()
    lesioned[:, :, 20:28, 28:36] = 3
    first, second = random_quality(lesioned, healthy, brains, generator())
    difference = first - second
    assert difference[:, :, 24, 8:16].abs().max() < 0.05  # the same noise in both
    assert 1 < difference[:, 0, 24, 32].median() <= 3
    assert second.std() > 0.05 and not torch.equal(first[0], first[1])


def test_global_random_state_is_untouched_and_the_seed_repeats_all(brains):
    before = torch.get_rng_state()
    image = torch.randn(200, 1, *SIZE, generator=generator())
    runs = [
        [
            random_deformation(image, source),
            random_appearance(image, source),
            *random_quality(image, image, brains, source),
        ]
        for source in (generator(3), generator(3), generator(4))
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one, same) for one, same in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(runs[0], runs[2], strict=True))
