"""What the networks are trained to reduce."""

import numpy as np
import pytest
import torch
from scripts.training.losses import lesion_loss, masked_error, masked_likelihood


def test_likelihood_is_least_at_the_true_mean_and_variance():
    truth = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    target = torch.cat([0.5 * truth, torch.ones(1, 2, 64, 64)], dim=1)

    def loss(mean, log_variance):
        return float(
            masked_likelihood(torch.tensor([mean, log_variance]).view(1, 2, 1, 1).expand(1, 2, 64, 64), target)
        )

    best = loss(0.0, float(np.log(0.25)))
    assert best < loss(0.3, float(np.log(0.25)))
    variance = torch.tensor(0.0, requires_grad=True)
    prediction = torch.stack([torch.zeros(64, 64), variance.expand(64, 64)])[None]
    for _ in range(300):
        (gradient,) = torch.autograd.grad(masked_likelihood(prediction, target), variance)
        variance = (variance - 0.5 * gradient).detach().requires_grad_()
        prediction = torch.stack([torch.zeros(64, 64), variance.expand(64, 64)])[None]
    assert variance.item() == pytest.approx(float(np.log(0.25)), abs=0.1)


def test_loss_of_a_mean_alone_is_its_squared_error_where_hidden(brain_mask):
    hidden = brain_mask.clone()
    hidden[..., :24] = False
    target = torch.cat([brain_mask.float(), hidden.float(), brain_mask.float()], dim=1)
    assert masked_error(target[:, :1], target) == 0
    assert masked_error(target[:, :1] + 2 * hidden, target) == pytest.approx(4.0)
    visible = (brain_mask & ~hidden).float()
    share = float(visible.sum() / brain_mask.sum())
    assert masked_error(target[:, :1] + visible, target, visible_weight=0.5) == pytest.approx(0.5 * share)


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


def test_lesions_are_learned_where_pixels_count_alone(brain_mask):
    brain = brain_mask.float()
    label, counts = torch.zeros_like(brain), brain.clone()
    label[..., 10:20, 15:30] = 1
    counts[..., 24:] = 0
    target = torch.cat([torch.zeros_like(brain), label * brain, counts, brain], dim=1)
    healthy = torch.zeros(4, 1, 32, 48)

    def loss(logit):
        return lesion_loss(torch.cat([healthy, logit], dim=1), target)

    right = 8 * (2 * label - 1)
    assert loss(right) < loss(0 * right) < loss(-right)
    assert loss(right) == loss(torch.where(counts > 0, right, -right))
    assert loss(right) == loss(torch.where(brain > 0, right, torch.tensor(9.0)))
