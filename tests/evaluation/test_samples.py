"""What is counted of one case without any threshold: examples counted by hand."""

import pytest
import torch
from monai.data import MetaTensor
from scripts.evaluation.samples import Sample, case_row, healthy_ssim, warn_of_label

OUTPUTS = ["mask", "anomaly_map", "reconstruction", "iterations", "threshold"]


def item(outputs=OUTPUTS, empty=False):
    """A volume (40, 48, 3): two slices with a brain of 12 x 12, the first with a lesion; 5 and 2 iterations."""
    brain, lesion, mask, iterations = (torch.zeros(1, 40, 48, 3) for _ in range(4))
    if not empty:
        brain[:, 12:24, 22:34, :2] = 1
    lesion[:, 14:18, 24:28, 0] = mask[:, 16:20, 24:28, 0] = 1
    iterations[..., 0], iterations[..., 1], iterations[..., 2] = 5, 2, 9
    noise = torch.randn(1, 40, 48, 3, generator=torch.Generator().manual_seed(0))
    channels = {"mask": mask, "anomaly_map": noise.square(), "reconstruction": noise * 0.9, "iterations": iterations}
    channels["threshold"] = torch.full_like(mask, 0.7)
    pred = torch.cat([channels[name] for name in outputs])
    image = MetaTensor(torch.cat([noise, brain]), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    return {"case": "one", "image": image, "label": lesion, "pred": pred}


@pytest.fixture
def sample():
    return Sample.from_item(item(), OUTPUTS)


def test_row_of_a_case_is_counted_by_hand(sample):
    row = case_row(sample, 6.0)
    assert row["lesion_pixels"] == 16 and row["brain_pixels"] == 2 * 144
    assert row["lesion_pixels_128"] == pytest.approx(16 * 128**2 / (40 * 48))
    assert row["false_positive_fraction"] == pytest.approx(8 / (2 * 144 - 16))
    assert row["false_positive_ml"] == pytest.approx(8 * 0.002)
    assert row["iterations"] == 3.5  # slices without brain are not looked at


def test_sample_is_what_lies_around_the_brain(sample):
    whole, shape = item(), sample.image.shape
    assert shape[0] == 2 and 12 < shape[2] < 40 and 12 < shape[3] < 48 and sample.grid == (40, 48)
    assert int(sample.brain_mask.sum()) == int(whole["image"][1].sum())
    torch.testing.assert_close(sample.image[sample.label], whole["image"][:1][whole["label"] > 0])


def test_sample_of_a_slice_is_that_of_a_volume_of_one():
    volume = item()
    plane = {key: value[..., 0] if isinstance(value, torch.Tensor) else value for key, value in volume.items()}
    alone = Sample.from_item(plane | {"slice": 7}, OUTPUTS)
    whole = Sample.from_item(volume, OUTPUTS)
    assert alone.name == "one_007" and len(alone.image) == 1
    torch.testing.assert_close(alone.image[0][alone.label[0]], whole.image[0][whole.label[0]])


def test_empty_brain_and_model_without_reconstruction_are_scored():
    names = [name for name in OUTPUTS if name != "reconstruction"]
    row = case_row(Sample.from_item(item(names, empty=True), names), 6.0)
    assert row["iterations"] == row["brain_pixels"] == 0 and row["ssim_healthy"] != row["ssim_healthy"]


@pytest.mark.parametrize(("label", "told"), [(None, ""), ("brain", "100% of the brain, with 0%"), ("outside", "0% of")])
def test_label_that_is_none_of_lesions_is_told(sample, caplog, label, told):
    if label:
        sample.label = sample.brain_mask if label == "brain" else ~sample.brain_mask
    warn_of_label(sample)
    assert len(caplog.records) == bool(label) and told in caplog.text


def test_ssim_of_the_healthy_brain_knows_nothing_of_lesion_and_background(sample):
    before = healthy_ssim(sample, 6.0)
    sample.reconstruction[sample.label | ~sample.brain_mask] = 50.0
    assert healthy_ssim(sample, 6.0) == before
    assert 0.5 < before["ssim_healthy_brain"] < before["ssim_healthy"] < 1
