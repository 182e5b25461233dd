"""What every model keeps beside its weights."""

import pytest
import torch
from scripts.method.description import from_description
from scripts.method.model import FORMAT, Model


class Plain(Model):
    networks = ["network"]
    thresholds = ("low", "high")

    def __init__(self):
        super().__init__(["flair", "t1"])
        self.network = torch.nn.Conv2d(3, 1, 1)
        self.describe(radius=4.0)

    def threshold_values(self):
        return [self.low, self.high]


def test_description_tells_the_method_and_its_settings():
    expected = {"format": FORMAT, "method": "Plain", "modalities": ["flair", "t1"], "network": None, "radius": 4.0}
    assert from_description(Plain().state_dict()["description"]) == expected


def test_model_segments_only_with_all_its_thresholds():
    model = Plain()
    model.low.fill_(0.5)
    with pytest.raises(RuntimeError, match="lacks a threshold: run configs/train.json to the end"):
        model.check_calibrated()
    model.high.fill_(1.0)
    model.check_calibrated()
