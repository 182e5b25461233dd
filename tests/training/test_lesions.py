"""Synthetic lesions: where they are, how they look, and what stays as it was."""

import pytest
import torch
from scripts.training.lesions import draw_shapes, lesion_places, lesion_radii, make_lesions

SIZE = (64, 80)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def brain_mask():
    """Brains (60, 1, 64, 80), bool."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 80), indexing="ij")
    return (rows**2 + columns**2 < 0.8).repeat(60, 1, 1, 1)


@pytest.fixture(scope="module")
def healthy(brain_mask):
    """Slices (60, 2, 64, 80) of two modalities, with dark ventricles."""
    image = 0.3 * torch.randn(60, 2, *SIZE, generator=generator(1))
    image[..., 26:38, 34:46] -= 4
    return image * brain_mask


@pytest.fixture(scope="module")
def made(healthy, brain_mask):
    return make_lesions(healthy, brain_mask, generator())


def test_lesions_lie_in_the_brain_and_nothing_changes_outside_of_it(made, healthy, brain_mask):
    image, label, _ = made
    assert image.shape == healthy.shape and label.shape == brain_mask.shape and label.dtype == torch.bool
    assert not (label & ~brain_mask).any()
    outside = ~brain_mask.expand_as(image)
    assert torch.equal(image[outside], healthy[outside])


def test_slices_without_lesion_are_as_they_were_but_for_dark_spots(healthy, brain_mask):
    image, label, _ = make_lesions(healthy, brain_mask, generator(), lesion_fraction=0.0)
    assert not label.any() and (image <= healthy).all()
    changed = (image != healthy).flatten(1).any(dim=1)
    assert 0.05 < float(changed.float().mean()) < 0.5
    assert torch.equal(make_lesions(healthy, brain_mask, generator(), 0.0, "both")[0], healthy)


def test_asked_part_of_the_slices_has_lesions_of_all_sizes(made):
    area = made[1].flatten(1).sum(dim=1)
    assert 0.7 < float((area > 0).float().mean()) <= 1
    assert area[area > 0].min() < 20 and area.max() > 600


def test_lesions_are_bright_in_the_range_of_contrasts(made, healthy):
    image, label, _ = made
    rise = (image - healthy).mean(dim=1, keepdim=True)
    means = torch.stack([rise[k][label[k]].mean() for k in range(60) if label[k].sum() > 5])
    assert (means > 0).float().mean() > 0.85 and 0.4 < means.median() < 5 and means.max() < 15


def test_both_polarities_make_dark_lesions_too(healthy, brain_mask):
    image, label, _ = make_lesions(healthy, brain_mask, generator(), 1.0, "both")
    change = (image - healthy)[:, :1]
    means = torch.stack([change[k][label[k]].mean() for k in range(60) if label[k].sum() > 5])
    assert 0.25 < float((means < 0).float().mean()) < 0.75


def test_every_draw_differs_and_the_seed_repeats_it(healthy, brain_mask):
    before = torch.get_rng_state()
    source = generator(5)
    first, second = (make_lesions(healthy, brain_mask, source) for _ in range(2))
    assert not torch.equal(first[1], second[1])
    again = make_lesions(healthy, brain_mask, generator(5))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(before, torch.get_rng_state())


def test_shapes_are_ellipsoids_of_the_asked_number_and_size_cut_anywhere():
    weight = torch.zeros(40, *SIZE)
    weight[:, 32, 40] = 1
    radius = torch.tensor([[0.0], [9.0]] * 20)
    shapes = draw_shapes(weight, radius, torch.ones(40, 1, 1), generator())
    area = (shapes.coverage > 0.5).flatten(1).sum(dim=1).float()
    assert not area[::2].any()
    assert area[1::2].max() < 1.6 * 254 and 0.3 * 254 < area[1::2].median()  # pi 9^2, flattened, uneven and cut
    assert (shapes.coverage >= 0).all() and (shapes.coverage <= 1).all()


def test_wide_borders_fade_outside_of_the_label():
    weight = torch.zeros(1, *SIZE)
    weight[:, 32, 40] = 1
    faded = []
    for border in (0.3, 4.0):
        shapes = draw_shapes(weight, torch.full((1, 1), 9.0), torch.full((1, 1, 1), border), generator())
        faded.append(int(((shapes.coverage > 0.1) & (shapes.coverage < 0.5)).sum()))
    assert faded[1] > 3 * faded[0]


def test_some_slices_have_few_large_and_others_many_small_lesions():
    radius, has_large = lesion_radii(2000, generator())
    assert 0.4 < float(has_large.float().mean()) < 0.5 and radius.max() > 30
    small = radius[~has_large]
    assert small.max() <= 8 and 1.7 < float(small[small > 0].median()) < 2.1
    count = (small > 0).sum(dim=1)
    assert count.min() == 1 and count.max() == 30 and 0.15 < float((count > 10).float().mean()) < 0.5


def test_lesions_at_the_ventricles_are_more_likely_than_by_chance(healthy, brain_mask):
    weight = lesion_places(healthy[:, 0].repeat(10, 1, 1), brain_mask[:, 0].repeat(10, 1, 1), generator())
    assert not weight[:, ~brain_mask[0, 0]].any()
    share = (weight / weight.flatten(1).sum(dim=1)[:, None, None]).mean(dim=0)
    near = share[22:26, 36:44].mean()
    assert near > 1.5 * share[12:16, 36:44].mean()


def test_slice_without_brain_gets_no_lesion():
    image, none = torch.zeros(3, 1, *SIZE), torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    changed, label, _ = make_lesions(image, none, generator())
    assert not label.any() and torch.equal(changed, image)
