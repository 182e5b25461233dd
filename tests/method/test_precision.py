"""The numbers in which the networks compute."""

from __future__ import annotations

import pytest
import torch
from scripts.method.precision import autocast, computes_bfloat16, in_precision


def test_precision_auto_is_bfloat16_where_the_device_has_it():
    device = torch.device("cpu")
    assert autocast("auto", device)._enabled == computes_bfloat16(device)
    assert not autocast("float32", device)._enabled and autocast("bfloat16", device)._enabled
    with pytest.raises(ValueError, match="`precision` must be one of float32, bfloat16, auto, got 'half'"):
        autocast("half", device)


def test_float32_is_the_model_itself(model):
    assert in_precision(model, "float32") is model


def test_twin_computes_its_networks_in_bfloat16_with_the_same_weights():
    layer = torch.nn.Linear(3, 2, bias=False)
    model = torch.nn.ModuleDict({"layer": layer})
    twin = in_precision(model, "bfloat16")
    image = torch.tensor([[1.0, 1.00390625, -2.0]])  # the second is no bfloat16
    expected = (image.bfloat16() @ layer.weight.bfloat16().t()).float()
    found = twin["layer"](image)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert twin["layer"].network is layer is model["layer"]
