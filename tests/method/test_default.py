from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.method.default import ProbabilisticIterMask, StandardizeBraind, standardize
from scripts.training.corruption import PrepareMaskedBatch
from scripts.training.masks import coarse_noise, random_blobs
from torch import nn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Expects(nn.Module):
    """A network that predicts a constant brain and an uncertainty, whatever it sees."""

    def __init__(self, in_channels, out_channels, mean=0.0, log_variance=0.0):
        super().__init__()
        self.values = [mean, log_variance][:out_channels]
        self.seen = []

    def forward(self, inputs):
        self.seen.append(inputs)
        return torch.stack([torch.full_like(inputs[:, 0], value) for value in self.values], dim=1)


@pytest.fixture
def flat(brain_mask):
    """Brains of unit noise with a bright square in the first one, as slices in any unit, and the square."""
    noise = torch.randn(brain_mask.shape, generator=generator())
    square = torch.zeros_like(brain_mask)
    square[0, 0, 10:16, 20:28] = True
    return torch.where(brain_mask, 100 + 10 * (noise + 6 * square), torch.tensor(0.0)), square


def expecting(**options):
    model = ProbabilisticIterMask(partial(Expects), sigma=1.0, mirror_weight=0.0, threshold=0.9, **options).eval()
    model.first_threshold.fill_(0.4)
    model.certain_threshold.fill_(1.3)
    return model


def test_standardizing_undoes_any_scale_and_offset(flat, brain_mask):
    image, _ = flat
    first = standardize(image, brain_mask)[0]
    second = standardize(image * 7 - 3, brain_mask)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    inside = first[1][brain_mask[1]] * 3
    assert abs(float(inside.median())) < 0.05 and 0.8 < float(inside.std()) < 1.2
    assert (first[~brain_mask] == -2).all()


def test_standardizing_gives_back_median_and_deviation(flat, brain_mask):
    standard, median, deviation = standardize(flat[0], brain_mask)
    restored = standard * 3 * deviation + median
    torch.testing.assert_close(restored[1][brain_mask[1]], flat[0][1][brain_mask[1]], rtol=0, atol=1e-3)


def test_standardized_slices_are_those_of_each_alone(flat, brain_mask):
    transform = StandardizeBraind("image", "standard")
    expected = standardize(flat[0], brain_mask, 0.0)[0]
    for index in range(4):
        found = transform({"image": flat[0][index], "brain_mask": brain_mask[index].float()})
        assert torch.equal(found["standard"], expected[index]) and torch.equal(found["image"], flat[0][index])


def test_slices_without_brain_stay_finite(flat, brain_mask):
    assert torch.isfinite(standardize(flat[0], brain_mask)[0]).all()


def test_slices_that_all_lack_a_brain_are_empty(small_network):
    model = ProbabilisticIterMask(partial(small_network, patch_size=2), threshold=1.0).eval()
    mask, anomaly_map, _, passes = model.refine(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16).bool())
    assert not mask.any() and not anomaly_map.any() and passes.tolist() == [0, 0]


def test_bright_area_is_found_and_healthy_brain_is_not(flat, brain_mask):
    image, square = flat
    with torch.no_grad():
        mask, anomaly_map, _, passes = expecting().refine(image, brain_mask)
    overlap = (mask & square).sum() * 2 / (mask.sum() + square.sum())
    assert overlap > 0.7
    assert not mask[1:].any() and not (anomaly_map * ~brain_mask).any()
    assert passes.tolist()[3] == 0 and passes[0] >= 2


@pytest.mark.parametrize(("sign", "found"), [("bright", False), ("both", True)])
def test_dark_area_is_found_with_both_signs_alone(flat, brain_mask, sign, found):
    image, square = flat
    with torch.no_grad():
        mask = expecting(sign=sign).refine(torch.where(brain_mask, 200 - image, image), brain_mask)[0]
    assert bool((mask & square).any()) is found


def test_uncertainty_lowers_the_score(flat, brain_mask):
    image, _ = flat
    certain, unsure = expecting(), expecting()
    unsure.masked.values[1] = 2.0
    with torch.no_grad():
        high, low = (m.refine(image, brain_mask)[1].amax() for m in (certain, unsure))
    assert float(low) == pytest.approx(float(high) / np.e, rel=0.2)


def test_mirrored_score_is_taken_off(flat, brain_mask):
    image, square = flat
    both_sides = torch.where(square.flip(2), image.flip(2), image)
    model = expecting()
    model.mirror_weight = 0.5
    with torch.no_grad():
        one, two = (model.refine(x, brain_mask)[1][0][square[0]].mean() for x in (image, both_sides))
    assert two < 0.75 * one


def test_first_iteration_hides_the_whole_brain_and_later_ones_what_is_suspicious(flat, brain_mask):
    image, square = flat
    model = expecting()
    with torch.no_grad():
        model.refine(image[:1], brain_mask[:1])
    masks = [seen[:, 1] for seen in model.masked.seen]
    assert torch.equal(masks[0], brain_mask[:1, 0].float()) and masks[1].sum() < 0.5 * masks[0].sum()
    assert (masks[1] * square[:1, 0]).sum() > 0.9 * square.sum()


def test_coarse_noise_hides_low_frequencies_alone():
    noise = coarse_noise(torch.Size((64, 1, 64, 64)), generator(), grids=(8,))
    amplitude = torch.fft.fft2(noise).abs().mean(0)[0]
    assert amplitude[:6, :6].mean() > 20 * amplitude[20:40, 20:40].mean()
    assert noise.std() == pytest.approx(0.7, abs=0.15)


@pytest.fixture
def batch(image, brain_mask):
    return {"prepared": standardize(image, brain_mask, 0.0)[0], "brain_mask": brain_mask.float()}


def test_training_batch_keeps_what_is_not_hidden(batch):
    prepare = PrepareMaskedBatch(random_blobs, augment=True)
    inputs, target = prepare(batch, torch.device("cpu"))
    slices, hidden, brain = target.split(1, dim=1)
    assert inputs.shape == (4, 2, 32, 48) and torch.equal(inputs[:, 1:], hidden)
    assert torch.equal(inputs[:, :1][hidden == 0], slices[hidden == 0])
    assert (inputs[:, :1][hidden == 1] != slices[hidden == 1]).float().mean() > 0.99
    assert not (hidden > brain).any()


def test_training_batch_repeats_with_seed_and_iteration_alone(batch):
    prepare = PrepareMaskedBatch(random_blobs, seed=1)
    first = prepare(batch, torch.device("cpu"))[0]
    assert torch.equal(first, prepare(batch, torch.device("cpu"))[0])
    prepare.iteration = 1
    assert not torch.equal(first, prepare(batch, torch.device("cpu"))[0])


def test_unknown_sign_is_an_error(small_network):
    with pytest.raises(ValueError, match="`sign` must be bright or both, got 'dark'"):
        ProbabilisticIterMask(small_network, sign="dark")


def test_one_pass_is_the_smoothed_residual_in_healthy_deviations(flat, brain_mask):
    image, _ = flat
    model = expecting(last_weight=0.0, predict_variance=False)
    model.deviation.fill_(2.0)
    anomaly_map = model.refine(image, brain_mask)[1]
    inside = standardize(image, brain_mask)[0].numpy()[0, 0] * brain_mask[0, 0].numpy()
    mass = ndimage.gaussian_filter(brain_mask[0, 0].numpy().astype(float), 1.0, mode="constant")
    expected = ndimage.gaussian_filter(inside, 1.0, mode="constant") / mass.clip(0.05) / 2
    found = anomaly_map[0, 0].detach().numpy()
    np.testing.assert_allclose(found[12:20, 20:28], expected[12:20, 20:28].clip(0), atol=2e-3)


def test_scaling_of_the_preprocessing_is_kept_on_request(flat, brain_mask):
    standard, median, deviation = standardize(flat[0] / 50, brain_mask, robust=False)
    torch.testing.assert_close(standard[brain_mask], (flat[0] / 150)[brain_mask])
    assert (median == 0).all() and (deviation == 1).all()


@pytest.mark.parametrize(("last_weight", "passes"), [(0.0, 1), (0.5, 2)])
def test_a_pass_without_weight_is_not_run(flat, brain_mask, last_weight, passes):
    image, square = flat
    model = expecting(last_weight=last_weight)
    with torch.no_grad():
        mask, _, _, counted = model.refine(image, brain_mask, max_passes=1)
    assert counted[0] == passes and counted[3] == 0
    assert len(model.masked.seen) == passes
    assert (mask & square).sum() > 0.6 * square.sum()


def test_bad_weight_of_the_last_pass_is_named():
    with pytest.raises(ValueError, match=r"`last_weight` must be in \[0, 1\), got 1"):
        expecting(last_weight=1)
