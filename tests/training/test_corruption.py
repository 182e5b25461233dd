"""What training hides and how it is scored: the strength of the noise, the place of masks, the weights of the loss."""

import pytest
import torch
from scripts.training.corruption import PrepareCorruptedBatch, PrepareMaskedBatch, Reconstructions
from scripts.training.masks import coarse_noise, random_blobs, random_squares

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


@pytest.fixture
def structured(image, brain_mask):
    return {"image": image, "prepared": -image, "brain_mask": brain_mask.float()}


def prepared(structured, seed=0, iteration=0):
    prepare = PrepareCorruptedBatch(random_blobs, seed=seed)
    prepare.iteration = iteration
    return prepare(structured, torch.device("cpu"))


def test_corruption_leaves_what_is_not_hidden_bit_identical(structured, image, brain_mask):
    inputs, targets = prepared(structured)
    corrupted, high = inputs.chunk(2, dim=1)
    changed = corrupted != image
    assert changed.any() and not (changed & ~brain_mask).any()
    assert torch.equal(high, -image) and torch.equal(targets, torch.cat([image, image], dim=1))


def test_every_iteration_draws_other_masks_and_the_seed_repeats_them(structured):
    assert torch.equal(prepared(structured, iteration=5)[0], prepared(structured, iteration=5)[0])
    assert not torch.equal(prepared(structured, iteration=5)[0], prepared(structured, iteration=6)[0])
    assert not torch.equal(prepared(structured, seed=1)[0], prepared(structured, seed=2)[0])


def test_one_pass_trains_both_networks_as_two_trainings_would(model, structured):
    inputs, targets = prepared(structured)
    both = Reconstructions(model)
    together = (both(inputs) - targets).square().mean()
    apart = sum(
        (Reconstructions(model, [name])(inputs) - targets[:, :1]).square().mean()
        for name in ("first_iteration", "masked")
    )
    gradient = torch.autograd.grad(together, list(both.parameters()))
    separate = torch.autograd.grad(apart, list(both.parameters()))
    for joint, alone in zip(gradient, separate, strict=True):
        torch.testing.assert_close(2 * joint, alone)


def test_unknown_network_to_train_is_an_error(model):
    with pytest.raises(ValueError, match="`trained` must list one or both of first_iteration, masked"):
        Reconstructions(model, ["second"])
