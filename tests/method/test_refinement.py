"""The steps of a refinement one by one: what the networks see, and how their residuals become scores and masks."""

import json

import pytest
import torch
from conftest import CONFIGS, Constant
from scripts.method.default import ProbabilisticIterMask, standardize
from scripts.method.refinement import SCALING, pass_noise


def test_every_pass_fills_what_is_hidden_with_other_noise(model, image, brain_mask):
    seen = []
    model.masked.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0][:, :1].clone()))
    model.threshold.fill_(0.0)
    with torch.no_grad():
        model.refine(image[:1], brain_mask[:1], stop_shrink=0.0, max_passes=3, seed=5)
    hidden = [filled != image[:1] for filled in seen]
    assert len(seen) == 3 and hidden[2].any()
    for number, (filled, where) in enumerate(zip(seen, hidden, strict=True)):
        assert torch.equal(filled[where], pass_noise(image, 5 + 1 + number)[where])


def test_no_slice_is_refined_more_often_than_allowed(model, image, brain_mask):
    model.threshold.fill_(0.0)
    with torch.no_grad():
        passes = model.refine(image, brain_mask, stop_shrink=0.0, max_passes=3)[3]
    assert passes.tolist() == [4, 4, 4, 0]


def test_extreme_intensities_are_clipped_to_minus_6_and_8_deviations(image, brain_mask):
    extreme = image.clone()
    extreme[0, 0, 16, 24], extreme[0, 0, 16, 25] = 1e4, -1e4
    standard = standardize(extreme, brain_mask)[0]
    assert standard[0, 0, 16, 24] == pytest.approx(8 / 3) and standard[0, 0, 16, 25] == -2


def test_anomaly_map_is_the_weighted_mean_of_the_first_and_the_last_score():
    model = ProbabilisticIterMask(Constant, mirror_weight=0.0, last_weight=0.25, threshold=1.0)
    first, last = torch.full((1, 1, 4, 4), 6.0), torch.full((1, 1, 4, 4), 2.0)
    brain = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(model.decide(brain, first, last, brain, 1.0)[1], torch.full((1, 1, 4, 4), 5.0))


def test_reconstruction_comes_in_the_units_of_the_slice(constant, image, brain_mask):
    constant.first_threshold.fill_(100.0)
    reconstruction = constant.refine(image[:3], brain_mask[:3])[2]
    _, median, deviation = standardize(image[:3], brain_mask[:3])
    torch.testing.assert_close(reconstruction, (3 * 0.5 * deviation + median).expand_as(reconstruction))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_threshold_scale_holds_for_every_threshold(constant, scale):
    brain = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    constant.first_threshold.fill_(0.5), constant.threshold.fill_(1.0), constant.certain_threshold.fill_(2.0)
    score = torch.zeros(1, 1, 8, 8)
    score[0, 0, 1, 1:4] = torch.tensor([0.9, 1.1, 2.1]) * scale  # an area that holds a certain pixel
    score[0, 0, 5, 1:4] = torch.tensor([0.4, 1.1, 1.9]) * scale
    first = constant.first_mask(score, brain, scale)
    assert first.nonzero()[:, 2:].tolist() == [[1, 1], [1, 2], [1, 3], [5, 2], [5, 3]]
    mask, _ = constant.decide(brain, score, score, brain, scale)
    assert mask.nonzero()[:, 2:].tolist() == [[1, 2], [1, 3]]


def test_what_is_dark_on_the_other_side_adds_nothing(constant):
    brain = torch.ones(1, 1, 16, 12, dtype=torch.bool)
    score = torch.zeros(1, 1, 16, 12)
    score[0, 0, 3, 5], score[0, 0, 12, 5] = 1.0, -20.0
    constant.mirror_weight = 0.5
    assert constant.decide(brain, score, score, brain, 1.0)[1][0, 0, 3, 5] == pytest.approx(1.0)


def test_mirrored_pixel_is_the_one_of_the_other_side(constant):
    brain = torch.ones(1, 1, 16, 12, dtype=torch.bool)
    score = torch.zeros(1, 1, 16, 12)
    score[0, 0, 2, 2], score[0, 0, 13, 2], score[0, 0, 2, 9] = 1.0, 20.0, 20.0
    constant.mirror_weight = 0.5
    anomaly_map = constant.decide(brain, score, score, brain, 1.0)[1]
    assert anomaly_map[0, 0, 2, 2] < 0.8 and anomaly_map[0, 0, 2, 9] == pytest.approx(20.0, abs=0.1)


def test_scaling_of_a_model_that_is_not_told_is_that_of_preprocessing():
    defaults = json.loads((CONFIGS / "preprocess.json").read_text())
    assert {name: defaults[name] for name in SCALING} == SCALING
