"""The published method's recorded inputs and outputs: the same numbers come out here.

Reads the folder named by ITERMASK_REFERENCE, else the copies in tests/data.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import itermask
from scripts.calibration import exceeded_by, hidden_errors
from scripts.frequency import high_frequency
from scripts.itermask import IterMask, hide
from scripts.networks import ReconstructionUNet, convert_research_weights
from torch import nn

REFERENCE = Path(os.environ.get("ITERMASK_REFERENCE") or Path(__file__).parent / "data")


def load(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.mark.parametrize("name", ["high_frequency", "high_frequency_120x96"])
def test_high_frequency_image(name):
    reference = load(name)
    found = high_frequency(reference["image"], float(reference["radius"]))
    torch.testing.assert_close(found, reference["expected"], rtol=0, atol=1e-5)


def test_input_of_the_masked_network():
    reference = load("masked_input")
    hidden = (reference["keep_mask"] == 0) & (reference["brain_mask"] > 0)
    corrupted = hide(reference["image"], hidden, reference["noise"])
    found = torch.cat([corrupted, high_frequency(reference["image"], 15)], dim=1)
    torch.testing.assert_close(found, reference["expected_input"], rtol=0, atol=1e-5)


def is_stable(network, image, output):
    """Whether a change of 1e-6 of the input leaves the output where it is.

    The recorded weights are random, and their attention logits reach 1e5: where two of them nearly tie, the last bit
    of a sum decides the output, and no other machine can be expected to reproduce it.
    """
    nudges = torch.rand(4, *image.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    moved = torch.cat([network(image[None] * (1 + 2e-6 * nudge)) for nudge in nudges])
    return (moved - output).abs().max() < 0.05


@pytest.mark.parametrize(("name", "channels"), [("first_iteration", 1), ("masked", 2)])
def test_network_with_converted_research_weights(name, channels):
    network = ReconstructionUNet(channels, 1, channels=8).eval()
    research = torch.load(REFERENCE / f"network_{name}.pt", weights_only=True)
    network.load_state_dict(convert_research_weights(research))
    reference = load(f"network_{name}")
    compared = 0
    with torch.no_grad():
        found = network(reference["input"])
        for image, output, expected in zip(reference["input"], found, reference["expected"], strict=True):
            if is_stable(network, image, output):
                torch.testing.assert_close(output, expected, rtol=0, atol=5e-3)
                compared += 1
    assert compared > 0


def test_converter_refuses_other_weights():
    with pytest.raises(ValueError, match="Expected the weights of a research network"):
        convert_research_weights({"encoder.weight": torch.zeros(1)})


@pytest.fixture
def convolutions(monkeypatch):
    """An `IterMask` whose networks are the recorded convolutions, with hidden pixels filled by 0."""
    reference = load("iterative_refinement")
    monkeypatch.setattr(itermask, "pass_noise", lambda image, seed: torch.zeros_like(image[:1]))
    model = IterMask(partial(nn.Conv2d, kernel_size=5, padding=2, bias=False))
    model.first_iteration.weight.data = reference["first_weight"]
    model.masked.weight.data = reference["refine_weight"]
    return model, reference


def test_calibrated_threshold(convolutions):
    model, reference = convolutions
    image, brain_mask = reference["validation_image"], reference["validation_brain_mask"] > 0
    spatial_mask = reference["validation_keep_mask"] == 0
    errors = hidden_errors(model, image, brain_mask, spatial_mask, noise=torch.zeros_like(image[:1]))
    assert exceeded_by(errors, 0.2) == pytest.approx(float(reference["expected_threshold"]), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_refinement(convolutions, batch_size):
    model, reference = convolutions
    model.threshold.fill_(float(reference["expected_threshold"]))
    with torch.no_grad():
        mask, _, reconstruction, passes = model.refine(
            reference["image"], reference["brain_mask"] > 0, batch_size=batch_size
        )
    assert torch.equal(mask, reference["expected_mask"] > 0)
    torch.testing.assert_close(reconstruction, reference["expected_reconstruction"], rtol=0, atol=1e-5)
    if batch_size == 32:
        assert int(passes.max()) == 1 + int(reference["refine_calls"])
