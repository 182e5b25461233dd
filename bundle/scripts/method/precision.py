"""In which numbers the networks compute: float32, or bfloat16 where the device has instructions for it."""

from __future__ import annotations

import torch

PRECISIONS = ("float32", "bfloat16", "auto")


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
    """
    low = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low)
