"""The high-frequency image: what both networks see of the whole slice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, ensure_tuple_rep
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
        raise ValueError(f"`image` must have shape (N, M, H, W), got {list(image.shape)}.")
    if radius < 0:
        raise ValueError(f"`radius` must be at least 0 frequency bins, got {radius}.")
    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=image.device)
    columns = torch.fft.fftfreq(width, 1 / width, device=image.device)
    masked = (rows[:, None] ** 2 + columns**2).sqrt() < radius
    spectrum = torch.fft.fft2(image.float())
    amplitude = torch.where(masked, torch.ones_like(spectrum.real), spectrum.abs())
    return torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real


class HighFrequency(Transform):
    """Transform twin of `high_frequency` for one slice (M, H, W)."""

    backend = [TransformBackends.TORCH]

    def __init__(self, radius: float):
        self.radius = radius

    def __call__(self, img: Tensor) -> Tensor:
        """Give the high-frequency image, (M, H, W)."""
        return high_frequency(img[None], self.radius)[0]


class HighFrequencyd(MapTransform):
    """Dictionary twin of `HighFrequency`: adds the high-frequency image of each key under another name.

    Args:
        keys: Slices (M, H, W).
        names: Where their high-frequency images go, one for each key.
        radius: Radius of the masked disc, in frequency bins.
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection, radius: float, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.transform = HighFrequency(radius)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the high-frequency images."""
        result = dict(data)
        for key, name in self.key_iterator(result, self.names):
            result[name] = self.transform(data[key])
        return result
