"""Thresholds of the lesion network, with a network whose answer is known."""

import pytest
import torch
from monai.data import MetaTensor
from scripts.method.lesion_network import LesionNetwork
from scripts.method.volume import segment_volume
from scripts.training.lesion_thresholds import calibrate_lesions, calibrate_volumes
from torch import nn


class Bright(nn.Module):
    """The logit of lesion is the brightness in deviations."""

    def forward(self, inputs):
        return torch.cat([inputs[:, :1], inputs[:, :1] * 3], dim=1)


@pytest.fixture
def model():
    return LesionNetwork(lambda in_channels, out_channels: Bright(), mirror_weight=0, slice_mirror_weight=0)


def test_healthy_slices_exceed_the_thresholds_of_slices_as_often_as_asked(model):
    brain = torch.zeros(4, 1, 48, 48)
    brain[..., 4:44, 4:44] = 1
    image = torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    scans, heads = ({"image": image**power, "brain_mask": brain, "certain": [power > 1] * 4} for power in (1, 3))
    low = calibrate_lesions(model, [scans, heads], -1.0, 2.0, 0.02, 0.01)
    assert low == pytest.approx(2.05, abs=0.15)  # of normal numbers
    assert low < float(model.slice_high_threshold) == pytest.approx(2.33, abs=0.2)
    assert [float(model.low_threshold), float(model.high_threshold)] == [-1, 2]
    model.check_calibrated()
    assert calibrate_lesions(model, [heads], -1.0, 2.0, 0.02, 0.01) > 2 * low  # no scan is there


def test_thresholds_of_volumes_rise_until_healthy_scans_are_hardly_marked(model):
    for name, value in zip(model.thresholds, (1.0, 2.0, 1.0, 2.0), strict=True):
        getattr(model, name).fill_(value)
    scans = []
    for seed in range(3):
        image = torch.randn(1, 36, 36, 36, generator=torch.Generator().manual_seed(seed))
        image = nn.functional.avg_pool3d(image, 3, 1, 1) * 5
        scans.append({"image": MetaTensor(100 + image, affine=torch.diag(torch.tensor([2.5, 2.5, 2.5, 1.0])))})
        scans[-1]["brain_mask"] = torch.ones(1, 36, 36, 36)
    marked = [float(segment_volume(model, s["image"], s["brain_mask"] > 0, (2.5,) * 3).mask.sum()) for s in scans]
    raised = calibrate_volumes(model, scans, largest_ml=1.0)
    assert raised > 0 and float(model.low_threshold) == 1 + raised and float(model.high_threshold) == 2 + raised
    now = [float(segment_volume(model, s["image"], s["brain_mask"] > 0, (2.5,) * 3).mask.sum()) for s in scans]
    assert sorted(now)[1] * 2.5**3 / 1000 <= 1 and max(now) < min(marked)
    assert calibrate_volumes(model, scans, largest_ml=1.0) == 0
    with pytest.raises(ValueError, match="No healthy scan"):
        calibrate_volumes(model, [])
