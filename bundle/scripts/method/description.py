"""What a model is, as a tensor of its state dict: a model file needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DESCRIPTION_BYTES = 2048


def to_description(settings: Mapping[str, object]) -> Tensor:
    """Write the settings of a model as a tensor that lies in its state dict: JSON text, (2048,) uint8."""
    text = json.dumps(settings).encode()
    return torch.tensor(list(text.ljust(DESCRIPTION_BYTES, b"\0")), dtype=torch.uint8)


def from_description(description: Tensor) -> dict[str, Any]:
    """Read what `to_description` wrote.

    Raises:
        ValueError: When it is no such text.
    """
    settings: dict[str, Any] = json.loads(bytes(description.flatten().tolist()).rstrip(b"\0").decode())
    return settings
