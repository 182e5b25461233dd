"""What the lesion network is trained to reduce."""

import pytest
import torch
from scripts.training.losses import lesion_loss


def test_healthy_slice_is_learned_inside_the_brain_alone(image, brain_mask):
    brain = brain_mask.float()
    target = torch.cat([image, torch.zeros_like(brain), brain, brain], dim=1)
    unlikely = torch.full_like(brain, -30.0)

    def loss(healthy):
        return float(lesion_loss(torch.cat([healthy, unlikely], dim=1), target, healthy_weight=1.0))

    assert loss(image) == pytest.approx(0, abs=1e-4)
    assert loss(image + 2) == pytest.approx(4, rel=1e-4)
    assert loss(torch.where(brain_mask, image, torch.tensor(9.0))) == loss(image)


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
