"""The high-frequency image: what both networks see of the whole slice."""

from __future__ import annotations

import torch
from torch import Tensor


def high_frequency(image: Tensor, radius: float) -> Tensor:
    """Set the low-frequency amplitudes of slices to 1 and keep every phase.

    Edges stay and tissue contrast goes: the frequency masking of Liang et al. 2024, section 2.1. Each slice and each
    modality is transformed on its own.

    Args:
        image: Slices (N, M, H, W) of M modalities, float32.
        radius: Amplitudes closer than this to the zero frequency are masked, in frequency bins of the image as
            given (the published value is 15 at 128 x 128); 0 returns ``image`` up to rounding.

    Returns:
        The real part of the inverse transform, (N, M, H, W).

    Raises:
        ValueError: When ``radius`` is negative or ``image`` is not 4-D.
    """
    if image.ndim != 4:
        raise ValueError(f"`image` must have shape (N, M, H, W), got {tuple(image.shape)}.")
    if radius < 0:
        raise ValueError(f"`radius` must be at least 0 frequency bins, got {radius}.")
    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=image.device)
    columns = torch.fft.fftfreq(width, 1 / width, device=image.device)
    masked = (rows[:, None] ** 2 + columns**2).sqrt() < radius
    spectrum = torch.fft.fft2(image.float())
    amplitude = torch.where(masked, torch.ones_like(spectrum.real), spectrum.abs())
    return torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
