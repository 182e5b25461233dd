"""IterMask2 as published: two networks, and a mask that shrinks to what they cannot reconstruct."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .frequency import high_frequency
from .model import Model
from .scores import error_map, highest_fraction

SCALING = {"upper_fraction": 0.9, "lower_fraction": 0.02, "lower_over_volume": True}


def iteration_noise(image: Tensor, seed: int) -> Tensor:
    """Standard normal noise that fills hidden pixels in one iteration; the same for every slice of any batch.

    Args:
        image: Slices (N, M, H, W) to be filled.
        seed: Seed of this iteration.

    Returns:
        Noise (1, M, H, W), drawn on the CPU, so that every device gets the same.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    shape = [1, image.shape[1], image.shape[2], image.shape[3]]
    return torch.randn(shape, generator=generator).to(image.device, image.dtype)


def hide(image: Tensor, spatial_mask: Tensor, filling: Tensor) -> Tensor:
    """Replace the hidden pixels of slices: ``image`` where ``spatial_mask`` is 0, ``filling`` where it is 1."""
    return torch.where(spatial_mask, filling.expand_as(image), image)


@torch.jit.unused
def refuse_onnx() -> None:
    """Say why the whole method cannot be exported, where the exporter would name a line of its inside."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            "The refinement stops where its data say so, which torch.export and ONNX cannot express: export the method "
            "with `ckpt_export` (TorchScript), or its networks with `run export_onnx` of configs/inference.json."
        )


class IterMask(Model):
    """IterMask2 as published (Liang et al. 2024, section 2).

    One network reconstructs the whole brain from its high-frequency image, the other what is hidden under noise from
    the rest and the high-frequency image. Its buffers are the threshold; ``field_of_view``, height and width of the
    training slices in mm, zeros where unknown; ``planes``, the lowest and highest position of the training slices along
    the scanner's z axis in mm, inf and -inf where unknown; and ``description``, see `Model`.

    Args:
        network: Makes a 2-D image-to-image network from ``in_channels`` and ``out_channels``; any MONAI network
            whose forward pass takes (N, in_channels, H, W) to (N, out_channels, H, W) will do.
        modalities: Names of the M modalities that are reconstructed together.
        image_size: Height and width in pixels that the networks work at.
        scaling: How the training slices were scaled: arguments of `scale_brain_intensity`.
        radius: Radius of the frequency mask, in bins at ``image_size``.
        sigma: Smoothing of the error map, in pixels at ``image_size``.
        initial_fraction: Part of the brain, in (0, 1], that the first mask hides.
        threshold: Error above which a pixel is anomalous. NaN until it has been calibrated on healthy slices.

    Raises:
        ValueError: When a fraction is outside its range.
    """

    title = "IterMask2 as published"
    networks = ["first_iteration", "masked"]
    thresholds = ("threshold",)
    threshold: Tensor
    field_of_view: Tensor
    planes: Tensor

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: Sequence[str] = ("flair",),
        image_size: int = 128,
        scaling: Mapping[str, object] | None = None,
        radius: float = 15.0,
        sigma: float = 0.0,
        initial_fraction: float = 0.6,
        threshold: float = float("nan"),
    ):
        super().__init__(modalities)
        if not 0 < initial_fraction <= 1:
            raise ValueError(
                f"`initial_fraction` must be in (0, 1], got {initial_fraction}; did you pass a percentage?"
            )
        self.image_size, self.radius, self.sigma = int(image_size), float(radius), float(sigma)
        self.initial_fraction = float(initial_fraction)
        self.scaling = {**SCALING, **(scaling or {})}
        self.first_iteration = network(in_channels=self.modalities, out_channels=self.modalities)
        self.masked = network(in_channels=2 * self.modalities, out_channels=self.modalities)
        self.threshold.fill_(threshold)
        self.register_buffer("field_of_view", torch.zeros(2))
        self.register_buffer("planes", torch.tensor([math.inf, -math.inf]))
        self.describe(
            image_size=self.image_size,
            scaling=self.scaling,
            radius=self.radius,
            sigma=self.sigma,
            initial_fraction=self.initial_fraction,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Segment slices: (N, M + 1, H, W) of modalities and brain mask to (N, 1, H, W), 1 where anomalous.

        Raises:
            NotImplementedError: When it is exported to ONNX, which has no way to stop when nothing shrinks.
        """
        if not torch.jit.is_scripting():
            refuse_onnx()
        brain_mask = image[:, self.modalities :] > 0.5
        return self.refine(image[:, : self.modalities], brain_mask)[0].to(image.dtype)

    def first_reconstruction(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct the brain from the high-frequency image alone: error map (n, 1, H, W) and reconstruction."""
        reconstruction = self.first_iteration(high_frequency(image, self.radius))
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def masked_reconstruction(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct what is hidden under noise from the rest: error map (n, 1, H, W) and reconstruction."""
        corrupted = hide(image, spatial_mask, noise)
        reconstruction = self.masked(torch.cat([corrupted, high_frequency(image, self.radius)], dim=1))
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def refine(
        self,
        image: Tensor,
        brain_mask: Tensor,
        threshold_scale: float = 1.0,
        tolerance: float = 0.01,
        max_iterations: int = 100,
        batch_size: int = 32,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shrink a mask over the brain until what stays hidden cannot be reconstructed (Liang et al. 2024, 2.3).

        The result of a slice does not depend on the other slices of the batch, and the same input and seed give the
        same result.

        Args:
            image: Slices (N, M, H, W), brain scaled to [-3, 3].
            brain_mask: Brain pixels (N, 1, H, W), bool.
            threshold_scale: Factor on the calibrated threshold; 1 uses it as it is, more marks less.
            tolerance: A slice is done when an iteration unhides less than this part of its mask, in [0, 1].
            max_iterations: A slice is done after this many iterations of the masked network.
            batch_size: Slices that the networks see at once.
            seed: Seed of the noise that fills hidden pixels.

        Returns:
            ``mask`` (N, 1, H, W) bool; ``anomaly_map`` (N, 1, H, W), the last error, 0 outside the brain;
            ``reconstruction`` (N, M, H, W), the last one; ``iterations`` (N,), how often a network saw the slice.

        Raises:
            RuntimeError: When the threshold has not been calibrated.
        """
        self.check_calibrated()
        threshold = float(self.threshold) * threshold_scale
        spatial_mask, anomaly_map = torch.zeros_like(brain_mask), torch.zeros_like(image[:, :1])
        reconstruction = image.clone()
        iterations = torch.zeros(len(image), dtype=torch.int64, device=image.device)

        # First iteration: reconstruct the whole brain and hide the part that came out worst.
        shrinking = brain_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        for part in shrinking.split(batch_size) if len(shrinking) else []:
            error, filled = self.first_reconstruction(image[part], brain_mask[part])
            spatial_mask[part] = highest_fraction(error, brain_mask[part], self.initial_fraction)
            anomaly_map[part], reconstruction[part] = error, filled
            iterations[part] += 1

        # Next iterations: fill what is hidden, unhide what was filled well; only slices that still shrink go on.
        shrinking = spatial_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        for iteration in range(max_iterations):
            if len(shrinking) == 0:
                break
            noise, still = iteration_noise(image, seed + 1 + iteration), []
            for part in shrinking.split(batch_size):
                hidden = spatial_mask[part]
                error, filled = self.masked_reconstruction(image[part], hidden, brain_mask[part], noise)
                refined = hidden & (error > threshold)
                size, refined_size = hidden.flatten(1).sum(dim=1), refined.flatten(1).sum(dim=1)
                shrank = (size - refined_size) >= tolerance * size
                anomaly_map[part], reconstruction[part] = error, filled
                iterations[part] += 1
                spatial_mask[part[shrank]] = refined[shrank]
                still.append(part[shrank & (refined_size > 0)])
            shrinking = torch.cat(still)
        return spatial_mask, anomaly_map, reconstruction, iterations

    def map_threshold(self, threshold_scale: float = 1.0) -> float:
        """Give the threshold of the anomaly map."""
        return float(self.threshold) * threshold_scale

    def threshold_values(self) -> list[Tensor]:
        """Give the buffers that calibration sets."""
        return [self.threshold]
