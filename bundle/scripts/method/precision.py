"""In which numbers the networks compute: float32, or bfloat16 where the device has instructions for it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16", "auto")
Model = TypeVar("Model", bound=nn.Module)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32; without such instructions it is far slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which networks run.

    Args:
        precision: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where `computes_bfloat16`, else float32.
        device: Where the networks are.

    Returns:
        A context manager: convolutions and matrix products in bfloat16, or everything as it is.

    Raises:
        ValueError: When ``precision`` is none of the three.
    """
    check_precision(precision)
    low = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low)


def check_precision(precision: str) -> None:
    """Refuse what is no precision.

    Raises:
        ValueError: When ``precision`` is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")


class Autocast(nn.Module):
    """A network that computes in another precision, from float32 to float32.

    Args:
        network: Its weights stay float32.
        precision: See `autocast`.
    """

    def __init__(self, network: nn.Module, precision: str):
        super().__init__()
        self.network = network
        self.precision = precision

    def forward(self, image: Tensor) -> Tensor:
        with autocast(self.precision, image.device):
            return self.network(image).float()


def in_precision(model: Model, precision: str) -> Model:
    """A twin of a model, with the same weights, whose networks compute in another precision; what is between does not.

    Args:
        model: `IterMask`, whose children are networks.
        precision: See `autocast`.
    """
    if precision == "float32":
        return model
    twin = copy.copy(model)
    twin._modules = {name: Autocast(network, precision) for name, network in model.named_children()}
    return twin
