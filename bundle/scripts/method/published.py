"""The published method: two networks, and a mask that shrinks where the squared error is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .frequency import high_frequency
from .refinement import Refinement, hide
from .scores import error_map, highest_fraction


class IterMask(Refinement):
    """IterMask2 as published (Liang et al. 2024, section 2).

    One network reconstructs the whole brain from its high-frequency image, the other what is hidden under noise from
    the rest and the high-frequency image.

    Args:
        network: Makes a 2-D image-to-image network from ``in_channels`` and ``out_channels``; any MONAI network
            whose forward pass takes (N, in_channels, H, W) to (N, out_channels, H, W) will do.
        modalities: Names of the M modalities that are reconstructed together.
        image_size: Height and width in pixels that the networks work at.
        scaling: See `Refinement`.
        radius: Radius of the frequency mask, in bins at ``image_size``.
        sigma: Smoothing of the error map, in pixels at ``image_size``.
        first_fraction: Part of the brain, in (0, 1], that the first mask hides.
        threshold: Score above which a pixel is anomalous. NaN until it has been calibrated on healthy slices.

    Raises:
        ValueError: When a fraction is outside its range.
    """

    title = "IterMask2 (published)"
    networks = ["first_iteration", "masked"]

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: Sequence[str] = ("flair",),
        image_size: int = 128,
        scaling: Mapping[str, object] | None = None,
        radius: float = 15.0,
        sigma: float = 0.0,
        first_fraction: float = 0.6,
        threshold: float = float("nan"),
    ):
        super().__init__(modalities, image_size, scaling, threshold)
        if not 0 < first_fraction <= 1:
            raise ValueError(f"`first_fraction` must be in (0, 1], got {first_fraction}; did you pass a percentage?")
        self.radius, self.sigma, self.first_fraction = float(radius), float(sigma), float(first_fraction)
        self.first_iteration = network(in_channels=self.modalities, out_channels=self.modalities)
        self.masked = network(in_channels=2 * self.modalities, out_channels=self.modalities)
        self.describe(radius=self.radius, sigma=self.sigma, first_fraction=self.first_fraction)

    def prepare(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the slices as they are."""
        unit = torch.ones_like(image[:, :, :1, :1])
        return image, unit, torch.zeros_like(unit)

    def first_pass(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct the whole brain from the high-frequency image alone; give score and reconstruction."""
        reconstruction = self.first_iteration(high_frequency(image, self.radius))
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def first_mask(self, score: Tensor, brain_mask: Tensor, threshold_scale: float) -> Tensor:
        """Hide the part of the brain that was reconstructed worst."""
        return highest_fraction(score, brain_mask, self.first_fraction)

    def masked_pass(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct what is hidden under noise from the rest; give score and reconstruction."""
        high = high_frequency(image, self.radius)
        reconstruction = self.masked(torch.cat([hide(image, spatial_mask, noise), high], dim=1))
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def refining_threshold(self) -> Tensor:
        """Give the error above which a hidden pixel stays hidden."""
        return self.threshold

    def decide(
        self, spatial_mask: Tensor, first_score: Tensor, last_score: Tensor, brain_mask: Tensor, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Give mask and anomaly map: what is still hidden, and the error of the last pass."""
        return spatial_mask, last_score
