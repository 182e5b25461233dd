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


def test_description_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at most 2048 bytes"):
        to_description({"modalities": ["x" * 3000]})


@pytest.mark.parametrize("text", [b"[1, 2]", b"{", b"\xff", b""])
def test_text_without_settings_is_refused(text):
    with pytest.raises(ValueError):
        from_description(torch.tensor(list(text.ljust(2048, b"\0")), dtype=torch.uint8))
