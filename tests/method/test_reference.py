"""The published method's recorded inputs and outputs: the same numbers come out here.

Reads the folder named by ITERMASK_REFERENCE, else the copies in tests/data.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import overlap
from monai.data import MetaTensor
from monai.transforms import Compose
from scripts.data.transforms import BrainMaskd, ScaleBrainIntensityd, SlicesOfScand
from scripts.evaluation.metrics import ssim_map
from scripts.method import itermask
from scripts.method.frequency import high_frequency
from scripts.method.itermask import IterMask, hide
from scripts.method.networks import ReconstructionUNet, convert_research_weights
from scripts.training.calibration import exceeded_by, hidden_errors
from torch import nn

REFERENCE = Path(os.environ.get("ITERMASK_REFERENCE") or Path(__file__).parents[1] / "data")


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
    monkeypatch.setattr(itermask, "iteration_noise", lambda image, seed: torch.zeros_like(image[:1]))
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
        mask, _, reconstruction, iterations = model.refine(
            reference["image"], reference["brain_mask"] > 0, batch_size=batch_size
        )
    assert torch.equal(mask, reference["expected_mask"] > 0)
    torch.testing.assert_close(reconstruction, reference["expected_reconstruction"], rtol=0, atol=1e-5)
    if batch_size == 32:
        assert int(iterations.max()) == 1 + int(reference["refine_calls"])


@pytest.fixture
def preprocessed():
    """The recorded volumes, and what the transforms of train.json and paper.json make of them."""
    with np.load(REFERENCE / "preprocessing.npz") as file:
        reference = dict(file)

    def slices(selection, lower_over_volume):
        volumes = {"image": np.stack([reference["flair"], reference["t1"]]), "label": reference["seg"][None]}
        scan = {key: MetaTensor(torch.from_numpy(volume).float(), affine=np.eye(4)) for key, volume in volumes.items()}
        scale = ScaleBrainIntensityd("image", lower_over_volume=lower_over_volume)
        cut = SlicesOfScand("image", selection=selection, slice_range=[70, 90])
        return Compose([BrainMaskd("image"), scale, cut])({"case": "one", **scan})

    return reference, slices


@pytest.mark.parametrize("lower_over_volume", [True, False])
def test_training_slices_are_the_healthy_ones(preprocessed, lower_over_volume):
    reference, slices = preprocessed
    found = slices("healthy", lower_over_volume)
    assert [part["slice"] for part in found] == reference["train_slices"].tolist()
    if lower_over_volume:
        np.testing.assert_allclose(found[0]["image"][0], reference["train_first_slice_flair"], atol=1e-5)


@pytest.mark.parametrize("lower_over_volume", [True, False])
def test_testing_slice_is_the_one_with_the_largest_lesion(preprocessed, lower_over_volume):
    reference, slices = preprocessed
    (found,) = slices("largest_lesion", lower_over_volume)
    assert found["slice"] == reference["test_slice"]
    np.testing.assert_array_equal(found["label"][0], reference["test_seg"])
    np.testing.assert_array_equal(found["brain_mask"][0], reference["test_brain_mask"])
    brain = reference["test_brain_mask"] > 0
    for image, name in zip(found["image"], ("flair", "t1"), strict=True):
        expected = reference[f"test_{name}"]
        if not lower_over_volume:  # ours stretches the same slice, so that the brain's lower quantile is -3 too
            volume = reference[name][reference["flair"] + reference["t1"] > 0]
            lower, upper = np.quantile(volume, [0.02, 0.9])
            expected = np.where(brain, ((expected + 3) * upper / 6 - lower) * 6 / (upper - lower) - 3, -3)
        np.testing.assert_allclose(image, expected, atol=1e-5)


@pytest.fixture
def metrics():
    return {key: value.numpy() for key, value in load("metrics").items()}


@pytest.mark.parametrize("name", ["dice", "sensitivity", "precision"])
def test_overlap(metrics, name):
    np.testing.assert_allclose(overlap(metrics["prediction"], metrics["target"])[name], metrics[name], rtol=1e-12)


def test_ssim(metrics):
    image, reconstruction = (torch.from_numpy(metrics[name]) for name in ("ssim_a", "ssim_b"))
    data_range = float(reconstruction.max() - reconstruction.min())
    found = ssim_map(image, reconstruction, data_range).mean().item()
    assert found == pytest.approx(float(metrics["ssim"]), abs=1e-5)
