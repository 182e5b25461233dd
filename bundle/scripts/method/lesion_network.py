"""The lesion network: one network that says where it sees lesions, for slices, slabs and whole volumes."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import Model
from .scores import gaussian_smooth, hysteresis

PIXEL_SIZE = 1.25  # mm, of the slices that the network sees
LOWEST, HIGHEST = -6.0, 8.0  # robust deviations of the brain that the network sees
UNIT = 3.0  # robust deviations that are 1 for the network
BACKGROUND = -2.0  # what the network sees outside the brain
UNLIKELY = -6.0  # logit: a lesion less likely than that is none


def standardize(image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Center and scale the brain of each slice robustly, so that a lesion or a scanner changes little.

    Args:
        image: Slices (N, M, H, W) in any linear scale.
        brain_mask: (N, 1, H, W), bool.

    Returns:
        Slices in robust deviations (1.4826 times the median absolute deviation) from the median of their brain; median
        and deviation, (N, M, 1, 1).
    """
    inside = image.masked_fill(~brain_mask, float("nan"))
    median = inside.flatten(2).nanmedian(dim=2).values[:, :, None, None]
    deviation = 1.4826 * (inside - median).abs().flatten(2).nanmedian(dim=2).values[:, :, None, None]
    median, deviation = median.nan_to_num(0.0), deviation.nan_to_num(1.0).clamp(min=1e-6)
    return (image - median) / deviation, median, deviation


def to_network(
    image: Tensor,
    brain_mask: Tensor,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    unit: float = UNIT,
    background: float = BACKGROUND,
) -> Tensor:
    """Give slices or volumes in deviations of the brain the range and the background that the network sees."""
    seen = image.clamp(lowest, highest) / unit
    return torch.where(brain_mask, seen, torch.full_like(seen, background))


class LesionNetwork(Model):
    """One network, trained with synthetic lesions, for slices, slabs and whole volumes.

    It sees a slice of any plane and its brain mask, and predicts the healthy slice and the logit of lesion. In volumes
    it sees the slices of all planes, see `segment_volume`. Its buffers are the thresholds of slices and of volumes:
    logits above which a voxel may be lesion, and which a connected component must reach.

    Args:
        network: Makes a 2-D network from ``in_channels`` and ``out_channels``.
        modalities: Names of the M modalities, which it sees together.
        pixel_size: Of the slices that it is trained on, in mm.
        polarity: "hyperintense" lesions, or "both", in which it was trained.
        mirror_weight: Part of the score of the mirrored place that is taken off in volumes: what is unusual on both
            sides is rarely a lesion.
        slice_mirror_weight: The same for slices.
        mirror_sigma: Smoothing of the mirrored score in pixels.
        prior: Part of a brain that is lesion where the logits of a volume stay as they are, see `label_shifts`.
        largest_shift: By how much they rise or fall at most; 0 leaves this out.

    Raises:
        ValueError: When ``polarity`` is neither.
    """

    title = "lesion network"
    networks = ["network"]
    thresholds = ("low_threshold", "high_threshold", "slice_low_threshold", "slice_high_threshold")
    low_threshold: Tensor
    high_threshold: Tensor
    slice_low_threshold: Tensor
    slice_high_threshold: Tensor

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: Sequence[str] = ("flair",),
        pixel_size: float = PIXEL_SIZE,
        polarity: str = "hyperintense",
        mirror_weight: float = 0.2,
        slice_mirror_weight: float = 0.5,
        mirror_sigma: float = 2.5,
        prior: float = 0.005,
        largest_shift: float = 1.0,
    ):
        super().__init__(modalities)
        if polarity not in ("hyperintense", "both"):
            raise ValueError(f"`polarity` must be hyperintense or both, got {polarity!r}.")
        self.network = network(in_channels=self.modalities + 1, out_channels=self.modalities + 1)
        self.multiple = int(getattr(self.network, "size_factor", 1))
        self.pixel_size, self.polarity = float(pixel_size), polarity
        self.mirror_weight, self.slice_mirror_weight = float(mirror_weight), float(slice_mirror_weight)
        self.mirror_sigma, self.prior, self.largest_shift = float(mirror_sigma), float(prior), float(largest_shift)
        self.unlikely, self.unit = UNLIKELY, UNIT
        self.describe(
            pixel_size=self.pixel_size,
            polarity=polarity,
            mirror_weight=self.mirror_weight,
            slice_mirror_weight=self.slice_mirror_weight,
            mirror_sigma=self.mirror_sigma,
            prior=self.prior,
            largest_shift=self.largest_shift,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment slices: (N, M + 1, H, W) of modalities and brain mask to (N, 1, H, W), 1 where anomalous."""
        self.check_calibrated()
        brain_mask = image[:, self.modalities :] > 0.5
        standard, _, _ = standardize(image[:, : self.modalities], brain_mask)
        logit = self.predict(standard, brain_mask)[:, self.modalities :]
        return self.slice_mask(self.slice_score(logit, brain_mask)).to(image.dtype)

    def predict(self, image: Tensor, brain_mask: Tensor, flip: bool = True) -> Tensor:
        """Predict the healthy slices, in deviations, and the logit of lesion: (N, M + 1, H, W).

        Args:
            image: Slices (N, M, H, W) in robust deviations from the median of their brain.
            brain_mask: (N, 1, H, W), bool.
            flip: Average with what the network says of the slices with their rows reversed: left and right.
        """
        height, width = image.shape[2], image.shape[3]
        padding = [0, -width % self.multiple, 0, -height % self.multiple]
        image, brain_mask = F.pad(image, padding), F.pad(brain_mask, padding)
        seen = torch.cat([to_network(image, brain_mask), brain_mask.to(image.dtype)], dim=1)
        seen = seen.contiguous(memory_format=torch.channels_last)
        output = self.network(seen).float()
        if flip:
            output = (output + self.network(seen.flip(2)).float().flip(2)) / 2
        mean, logit = self.unit * output[:, : self.modalities], output[:, self.modalities :]
        return torch.cat([mean, logit], dim=1)[:, :, :height, :width]

    def slice_score(self, logit: Tensor, brain_mask: Tensor) -> Tensor:
        """Take off the mirrored score: logits of slices (N, 1, H, W) to logits, `UNLIKELY` outside the brain."""
        raised = (logit - self.unlikely).clamp(min=0) * brain_mask
        mirrored = gaussian_smooth(raised.flip(2), brain_mask.flip(2), self.mirror_sigma, 0.05)
        return (raised - self.slice_mirror_weight * mirrored).clamp(min=0) * brain_mask + self.unlikely

    def slice_mask(self, score: Tensor) -> Tensor:
        """Mark areas of slices above the lower threshold that reach the higher one: (N, 1, H, W), bool."""
        return hysteresis(score, float(self.slice_low_threshold), float(self.slice_high_threshold))

    def map_threshold(self, threshold_scale: float = 1.0) -> float:
        """Give the lowest probability that is marked in a volume; ``threshold_scale`` is a factor on its odds."""
        odds = math.exp(float(self.low_threshold)) * threshold_scale
        return odds / (1 + odds)

    def threshold_values(self) -> list[Tensor]:
        """Give the buffers that calibration sets."""
        return [self.low_threshold, self.high_threshold, self.slice_low_threshold, self.slice_high_threshold]
