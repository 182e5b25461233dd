"""What training hides: the strength of the noise, the place of masks, and that one pass trains both networks."""

import pytest
import torch
from scripts.training.corruption import PrepareCorruptedBatch, TrainedNetworks
from scripts.training.masks import random_squares

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noise_of_the_hidden_pixels_is_standard_normal():
    image = torch.randn(60, 1, 64, 48, generator=generator())
    batch = {"image": image, "high_frequency": image / 3, "brain_mask": torch.ones_like(image)}
    hidden = PrepareCorruptedBatch(lambda brain_mask, generator: brain_mask)(batch, CPU)[0][:, :1]
    assert float(hidden.mean()) == pytest.approx(0, abs=0.02) and float(hidden.std()) == pytest.approx(1, abs=0.02)
    assert float((hidden < -1).float().mean()) == pytest.approx(0.159, abs=0.01)


def test_squares_fall_everywhere_in_a_brain_that_is_no_square():
    for shape in ((16, 64), (64, 16)):
        brain = torch.ones(300, 1, *shape, dtype=torch.bool)
        part = random_squares(brain, generator()).float().mean(dim=(0, 1))
        for axis in (0, 1):
            quarters = torch.stack([quarter.mean() for quarter in part.chunk(4, dim=axis)])
            assert quarters.min() > 0.4 * quarters.max()


@pytest.fixture
def batch(image, brain_mask):
    return {"image": image, "high_frequency": -image, "brain_mask": brain_mask.float()}


def prepared(batch, seed=0, iteration=0):
    prepare = PrepareCorruptedBatch(random_squares, seed=seed)
    prepare.iteration = iteration
    return prepare(batch, CPU)


def test_corruption_leaves_what_is_not_hidden_bit_identical(batch, image, brain_mask):
    inputs, targets = prepared(batch)
    corrupted, high = inputs.chunk(2, dim=1)
    changed = corrupted != image
    assert changed.any() and not (changed & ~brain_mask).any()
    assert torch.equal(high, -image) and torch.equal(targets, torch.cat([image, image], dim=1))


def test_every_iteration_draws_other_masks_and_the_seed_repeats_them(batch):
    before = torch.get_rng_state()
    assert torch.equal(prepared(batch, iteration=5)[0], prepared(batch, iteration=5)[0])
    assert not torch.equal(prepared(batch, iteration=5)[0], prepared(batch, iteration=6)[0])
    assert not torch.equal(prepared(batch, seed=1)[0], prepared(batch, seed=2)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_one_pass_trains_both_networks_as_two_trainings_would(model, batch):
    inputs, targets = prepared(batch)
    both = TrainedNetworks(model)
    together = (both(inputs) - targets).square().mean()
    outputs = model.first_iteration(inputs[:, 1:]), model.masked(inputs)
    apart = sum((output - targets[:, :1]).square().mean() for output in outputs)
    gradient = torch.autograd.grad(together, list(both.parameters()))
    separate = torch.autograd.grad(apart, list(both.parameters()))
    for joint, alone in zip(gradient, separate, strict=True):
        torch.testing.assert_close(2 * joint, alone)
