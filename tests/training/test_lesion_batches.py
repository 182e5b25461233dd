"""Batches with synthetic lesions: what is seen, and what is asked for."""

from functools import partial

import pytest
import torch
from scripts.training.lesion_batches import PrepareLesionBatch, moved, random_scale, smooth_level
from scripts.training.lesions import make_lesions

CPU = torch.device("cpu")
NONE = partial(make_lesions, lesion_fraction=0.0, polarity="both")


@pytest.fixture
def batch():
    """Six slices (6, 1, 48, 64) of unit noise in an ellipse, three of them certain."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 64), indexing="ij")
    brain = (rows**2 + columns**2 < 0.7).expand(6, 1, 48, 64).float()
    image = torch.randn(6, 1, 48, 64, generator=torch.Generator().manual_seed(0)) * brain
    return {"image": image, "brain_mask": brain, "certain": torch.tensor([1, 1, 1, 0, 0, 0])}


def test_scale_of_training_changes_around_that_of_the_scan_or_the_slice():
    image = 3 + 2 * torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    brain, nothing = torch.ones(400, 1, 16, 16) > 0, torch.zeros(400, 1, 16, 16) > 0
    center, scale = random_scale(image, brain, nothing, torch.Generator().manual_seed(1))
    by_scan = center.flatten() < 1.5  # the scan's is 0 and 1, the slice's near 3 and 2
    assert 150 < int(by_scan.sum()) < 250
    for chosen, expected in ((by_scan, (0, 1)), (~by_scan, (3, 2))):
        assert float(center.flatten()[chosen].median()) == pytest.approx(expected[0], abs=0.15)
        assert float(scale.flatten()[chosen].median()) == pytest.approx(expected[1], rel=0.06)


def test_brain_moves_with_its_slice():
    mask = torch.zeros(5, 1, 48, 64, dtype=torch.bool)
    mask[..., 12:36, 16:48] = True
    image, found = moved(torch.where(mask, 4.0, 0.0), mask, torch.Generator().manual_seed(0))
    assert not torch.equal(found, mask) and (image[found] - 4).abs().max() < 1e-4


def test_smoothed_level_is_that_of_the_brightest_modality_inside_the_brain():
    brain = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    brain[..., 4:12, 4:12] = True
    image = torch.stack([torch.full((16, 16), value) for value in (1.0, 2.0)])[None].where(brain, torch.tensor(50.0))
    torch.testing.assert_close(smooth_level(image, brain)[brain], torch.full((64,), 2.0))


def test_lesions_are_asked_for_and_pixels_count_as_they_should(batch):
    lesions = partial(make_lesions, lesion_fraction=1.0)
    prepare = PrepareLesionBatch(lesions=lesions, small_weight=3.0, augment=False)
    inputs, target = prepare(batch, CPU)
    asked, label, weight, brain = target.split(1, dim=1)
    assert inputs.shape == (6, 2, 48, 64) and torch.equal(brain, batch["brain_mask"])
    assert torch.equal(inputs[:, 1:], brain)
    assert torch.equal(weight[label == 0], brain[label == 0]) and 1 <= weight[label > 0].min()
    assert weight.max() == 3  # of small lesions
    assert (label <= brain).all() and label.any()
    assert (inputs[:, :1] > asked)[label > 0].float().mean() > 0.9
    untouched = (label == 0) & (torch.nn.functional.max_pool2d(label, 9, 1, 4) == 0)
    assert (inputs[:, :1] == asked)[untouched].float().mean() > 0.7


def test_healthy_slices_are_asked_for_as_they_are(batch):
    inputs, target = PrepareLesionBatch(lesions=NONE, augment=False)(batch, CPU)
    assert torch.equal(inputs[:, :1], target[:, :1]) and not target[:, 1].any()


def test_what_may_be_a_lesion_teaches_nothing_where_a_slice_is_not_certain(batch):
    for doubt_weight in (0.0, 0.2):
        prepare = PrepareLesionBatch(lesions=NONE, doubt=-100.0, doubt_weight=doubt_weight, augment=False)
        weight = prepare(batch, CPU)[1][:, 2]
        assert weight[:3].max() == 1 and float(weight[3:].max()) == pytest.approx(doubt_weight)


def test_same_iteration_repeats_its_batch_and_another_draws_another(batch):
    prepare = PrepareLesionBatch()
    first = prepare(batch, CPU)[0]
    prepare.iteration = 1
    second = prepare(batch, CPU)[0]
    prepare.iteration = 0
    assert torch.equal(first, prepare(batch, CPU)[0]) and not torch.equal(first, second)
