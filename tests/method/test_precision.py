"""The numbers in which the networks compute."""

from __future__ import annotations

import torch
from scripts.method.precision import autocast, computes_bfloat16


def test_precision_auto_is_bfloat16_where_the_device_has_it():
    device = torch.device("cpu")
    assert autocast("auto", device)._enabled == computes_bfloat16(device)
    assert not autocast("float32", device)._enabled and autocast("bfloat16", device)._enabled
