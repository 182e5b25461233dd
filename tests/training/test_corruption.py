"""What training hides and how it is scored: the strength of the noise, the place of masks, the weights of the loss."""

import pytest
import torch
from scripts.training.augmentation import random_affine
from scripts.training.corruption import PrepareCorruptedBatch, PrepareMaskedBatch
from scripts.training.losses import masked_error, masked_likelihood
from scripts.training.masks import coarse_noise, random_squares

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def whole_brain(brain_mask, generator):
    """Hides all that may be hidden."""
    return brain_mask


@pytest.fixture
def batch():
    """Slices that are brain all over (60, 1, 64, 48)."""
    image = torch.randn(60, 1, 64, 48, generator=generator())
    return {"image": image, "prepared": image / 3, "brain_mask": torch.ones_like(image)}


def test_published_noise_is_standard_normal(batch):
    hidden = PrepareCorruptedBatch(whole_brain)(batch, CPU)[0][:, :1]
    assert float(hidden.mean()) == pytest.approx(0, abs=0.02) and float(hidden.std()) == pytest.approx(1, abs=0.02)
    assert float((hidden < -1).float().mean()) == pytest.approx(0.159, abs=0.01)


def test_coarse_noise_is_as_strong_as_asked_in_deviations_of_the_brain(batch):
    for amplitude in (0.6, 3.0):  # a deviation of the brain is 1/3 in the slice
        options = {"noise_range": (amplitude, amplitude), "noise_fraction": 0.0, "augment": False}
        inputs, target = PrepareMaskedBatch(whole_brain, **options)(batch, CPU)
        added = inputs[:, :1] - target[:, :1]
        assert float(added.std()) == pytest.approx(0.7 * amplitude / 3, rel=0.15)
        assert added.diff(dim=-1).std() < 0.7 * added.std()  # smooth


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_asked_part_of_the_slices_holds_noise_alone(batch, fraction):
    options = {"noise_range": (1e-6, 1e-6), "noise_fraction": fraction, "augment": False}
    inputs, target = PrepareMaskedBatch(whole_brain, **options)(batch, CPU)
    noise_alone = (inputs[:, :1] - target[:, :1]).flatten(1).std(dim=1) > 0.1
    assert float(noise_alone.float().mean()) == pytest.approx(fraction, abs=0.15 * (0 < fraction < 1))
    assert not noise_alone.any() or float(inputs[noise_alone, :1].std()) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("loss", "channels"), [(masked_error, 1), (masked_likelihood, 2)])
def test_background_does_not_count_in_the_loss(loss, channels, image, brain_mask):
    hidden = brain_mask.clone()
    hidden[..., :24] = False
    target = torch.cat([image, hidden.float(), brain_mask.float()], dim=1)
    prediction = torch.zeros(4, channels, 32, 48)
    elsewhere = torch.where(brain_mask, prediction, torch.tensor(2.0))
    assert loss(prediction, target) == loss(elsewhere, target)
    assert loss(prediction, target) != loss(torch.where(hidden, torch.tensor(2.0), prediction), target)


@pytest.fixture
def prediction():
    """Mean and log-variance of one pixel in each of four slices, and the slices, hidden and inside the brain."""
    mean = torch.tensor([0.5, -0.3, 1.5, 0.0]).view(4, 1, 1, 1)
    log_variance = torch.tensor([-3.0, -1.0, 0.5, 2.0]).view(4, 1, 1, 1)
    slices = torch.tensor([0.4, 0.4, 0.4, 0.4]).view(4, 1, 1, 1)
    return mean, log_variance, torch.cat([slices, torch.ones(4, 2, 1, 1)], dim=1)


def test_likelihood_of_a_pixel_is_weighted_by_its_variance_up_to_one(prediction):
    mean, log_variance, target = prediction
    error = (mean - target[:, :1]) ** 2
    weight = torch.tensor([2.718281828**-3, 2.718281828**-1, 1.0, 1.0]).view(4, 1, 1, 1)
    expected = (error + 0.5 * weight * (error / log_variance.exp() + log_variance)).mean()
    torch.testing.assert_close(masked_likelihood(torch.cat([mean, log_variance], dim=1), target), expected)


def test_mean_learns_from_its_squared_error_alone(prediction):
    mean, log_variance, target = prediction
    mean.requires_grad_()
    found = torch.autograd.grad(masked_likelihood(torch.cat([mean, log_variance], dim=1), target), mean)[0]
    expected = torch.autograd.grad(masked_error(mean, target), mean)[0]
    torch.testing.assert_close(found, expected)


def test_slices_turn_by_a_few_degrees_alone():
    left = torch.zeros(300, 1, 64, 64)
    left[..., :32] = 1
    moved, _ = random_affine(left, left > 0, generator())
    border = moved[:, 0, 16:48, 16:].sum(dim=-1)
    degrees = ((border[:, -1] - border[:, 0]) / 31).atan() * 180 / torch.pi
    assert degrees.abs().max() < 9 and degrees.min() < -6 and degrees.max() > 6


def test_squares_fall_everywhere_in_a_brain_that_is_no_square():
    for shape in ((16, 64), (64, 16)):
        brain = torch.ones(300, 1, *shape, dtype=torch.bool)
        share = random_squares(brain, generator()).float().mean(dim=(0, 1))
        for axis in (0, 1):
            quarters = torch.stack([part.mean() for part in share.chunk(4, dim=axis)])
            assert quarters.min() > 0.4 * quarters.max()


def test_knots_of_coarse_noise_lie_at_other_places_in_every_batch():
    def bends(seed):
        """The rows where the field, linear between its knots, bends."""
        noise = coarse_noise(torch.Size((8, 1, 64, 64)), generator(seed), grids=(8,))
        return tuple((noise.diff(n=2, dim=2).abs().amax(dim=(0, 1, 3)) > 1e-4).nonzero()[:, 0].tolist())

    assert len({bends(seed) for seed in range(12)}) > 4
