"""The lesion network on slices, with a network whose answer is known."""

import pytest
import torch
from scripts.method.description import from_description
from scripts.method.lesion_network import UNIT, LesionNetwork, standardize
from torch import Tensor, nn


class Bright(nn.Module):
    """Sees a lesion where a slice is brighter than 4 deviations of the brain."""

    size_factor = 16

    def forward(self, inputs: Tensor) -> Tensor:
        image = inputs[:, :1]
        return torch.cat([image, image * 3 - 4], dim=1)


@pytest.fixture
def model():
    model = LesionNetwork(lambda in_channels, out_channels: Bright())
    for name, value in zip(model.thresholds, (-0.5, 0.5, -0.5, 0.5), strict=True):
        getattr(model, name).fill_(value)
    return model.eval()


@pytest.fixture
def slices():
    """Two slices and their brain masks, of which one has a lesion."""
    image = torch.randn(2, 1, 36, 40, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    brain = torch.zeros(2, 1, 36, 40)
    brain[..., 3:-3, 4:-4] = 1
    image[0, 0, 20:24, 10:15] = 9.0
    return torch.cat([100 + 5 * image, brain], dim=1)


def test_slices_are_segmented_one_by_one_in_any_scale_and_in_torchscript(model, slices):
    mask = model(slices)
    assert mask[0, 0, 20:24, 10:15].all() and mask.sum() == 20
    assert torch.equal(model(slices[:1]), mask[:1])
    assert torch.equal(model(torch.cat([3 * slices[:, :1] - 70, slices[:, 1:]], dim=1)), mask)
    assert torch.equal(torch.jit.script(model)(slices), mask)
    assert not model(torch.zeros_like(slices)).any()


def test_standardized_brain_has_median_0_and_deviation_1(slices):
    image, brain = slices[:, :1], slices[:, 1:] > 0
    standard, median, deviation = standardize(image, brain)
    assert torch.allclose(standard * deviation + median, image, atol=1e-4)
    assert standard[brain].abs().median() == pytest.approx(1 / 1.4826, abs=0.02)


def test_prediction_is_in_deviations_and_has_the_size_of_the_slices(model, slices):
    image, brain, _ = standardize(slices[:, :1], slices[:, 1:] > 0)[0], slices[:, 1:] > 0, None
    prediction = model.predict(image, brain)
    assert prediction.shape == (2, 2, 36, 40)
    assert torch.allclose(prediction[:, :1][brain], image.clamp(-6, 8)[brain], atol=1e-5) and UNIT == 3


def test_model_says_what_it_is_and_refuses_to_work_without_thresholds(model, slices):
    assert from_description(model.description)["method"] == "LesionNetwork"
    model.slice_low_threshold.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="lacks a threshold"):
        model(slices)
    with pytest.raises(ValueError, match="`polarity` must be hyperintense or both, got 'bright'"):
        LesionNetwork(lambda in_channels, out_channels: Bright(), polarity="bright")
