"""What a model is, as a tensor."""

import json

import pytest
import torch
from scripts.method.description import from_description, to_description

SETTINGS = {"method": "IterMask", "modalities": ["flair", "t1"], "sigma": 0.5, "network": None}


def test_description_is_json_text_that_zeros_follow():
    description = to_description(SETTINGS)
    assert (description.dtype, description.shape) == (torch.uint8, (2048,))
    text = bytes(description.tolist())
    assert json.loads(text.rstrip(b"\0")) == SETTINGS and text.endswith(b"}" + bytes(text.count(0)))


def test_settings_come_back_as_they_were():
    assert from_description(to_description(SETTINGS)) == SETTINGS


@pytest.mark.parametrize("text", [b"{", b"\xff", b""])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        from_description(torch.tensor(list(text.ljust(2048, b"\0")), dtype=torch.uint8))
