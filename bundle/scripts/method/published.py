"""IterMask2 as one module: two reconstruction networks, the threshold between them, and the refinement of a mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .frequency import high_frequency
from .scores import error_map, highest_fraction


def pass_noise(image: Tensor, seed: int) -> Tensor:
    """Standard normal noise that fills hidden pixels in one pass: the same for every slice, so batches do not matter.

    Args:
        image: Slices (N, M, H, W) to be filled.
        seed: Seed of this pass.

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


class IterMask(nn.Module):
    """The two networks of IterMask2 and the iterative refinement that uses them (Liang et al. 2024, section 2).

    `refine` is the algorithm; the methods before it are the choices of the published method, and
    `probabilistic.ProbabilisticIterMask` makes others.

    Args:
        network: Makes a 2-D image-to-image network from ``in_channels`` and ``out_channels``; any MONAI network
            whose forward pass takes (N, in_channels, H, W) to (N, out_channels, H, W) will do.
        modalities: Number M of MRI modalities that are reconstructed together.
        radius: Radius of the frequency mask, in bins at the network's image size.
        sigma: Smoothing of the error map, in pixels at the network's image size.
        first_fraction: Part of the brain, in (0, 1], that the first mask hides.
        threshold: Score above which a pixel is anomalous. NaN until it has been calibrated on healthy slices.

    Of the slices it was trained on, the buffer ``field_of_view`` holds height and width (mm), zeros where unknown, and
    ``planes`` the lowest and highest position along the scanner's z axis (mm), inf and -inf where unknown.

    Raises:
        ValueError: When a fraction is outside its range.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: int = 1,
        radius: float = 15.0,
        sigma: float = 0.0,
        first_fraction: float = 0.6,
        threshold: float = float("nan"),
    ):
        super().__init__()
        if not 0 < first_fraction <= 1:
            raise ValueError(f"`first_fraction` must be in (0, 1], got {first_fraction}; did you pass a percentage?")
        self.modalities = modalities
        self.radius = float(radius)
        self.sigma = float(sigma)
        self.first_fraction = float(first_fraction)
        self.first_iteration = network(in_channels=modalities, out_channels=modalities)
        self.masked = network(in_channels=2 * modalities, out_channels=modalities)
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.register_buffer("field_of_view", torch.zeros(2))
        self.register_buffer("planes", torch.tensor([math.inf, -math.inf]))

    def forward(self, image: Tensor) -> Tensor:
        """Segment slices: (N, M + 1, H, W) of modalities and brain mask to (N, 1, H, W), 1 where anomalous.

        Raises:
            NotImplementedError: When it is exported to ONNX, which has no way to stop when nothing shrinks.
        """
        if not torch.jit.is_scripting():
            refuse_onnx()
        brain_mask = image[:, self.modalities :] > 0.5
        return self.refine(image[:, : self.modalities], brain_mask)[0].to(image.dtype)

    def prepare(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The slices as the networks see them, and factor and offset (N, M, 1, 1) that undo it in a reconstruction."""
        one = torch.ones_like(image[:, :, :1, :1])
        return image, one, torch.zeros_like(one)

    def context(
        self, image: Tensor, brain_mask: Tensor, noise: Tensor, shared_overlap: float, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """What passes see beside the corrupted slice: the high-frequency image (N, M, H, W), for no network pass."""
        return high_frequency(image, self.radius), torch.zeros(len(image), dtype=torch.int64, device=image.device)

    def first_pass(self, image: Tensor, brain_mask: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct the whole brain from the high-frequency image alone; give score and reconstruction."""
        reconstruction = self.first_iteration(context)
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def first_mask(self, score: Tensor, brain_mask: Tensor, threshold_scale: float) -> Tensor:
        """Hide the part of the brain that was reconstructed worst."""
        return highest_fraction(score, brain_mask, self.first_fraction)

    def masked_pass(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, context: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct what is hidden under noise from the rest; give score and reconstruction."""
        reconstruction = self.masked(torch.cat([hide(image, spatial_mask, noise), context], dim=1))
        return error_map(image, reconstruction, brain_mask, self.sigma), reconstruction

    def refining_threshold(self) -> Tensor:
        """The score above which a hidden pixel stays hidden."""
        return self.threshold

    def decide(
        self, spatial_mask: Tensor, first_score: Tensor, last_score: Tensor, brain_mask: Tensor, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Give mask and anomaly map: what is still hidden, and the score of the last pass."""
        return spatial_mask, last_score

    def refine(
        self,
        image: Tensor,
        brain_mask: Tensor,
        threshold_scale: float = 1.0,
        stop_shrink: float = 0.01,
        max_passes: int = 100,
        batch_size: int = 32,
        seed: int = 0,
        shared_overlap: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shrink a mask over the brain until what stays hidden cannot be reconstructed: the anomaly.

        The result of a slice does not depend on the other slices of the batch, and the same input and seed give the
        same result.

        Args:
            image: Slices (N, M, H, W), brain scaled to [-3, 3].
            brain_mask: Brain pixels (N, 1, H, W), bool.
            threshold_scale: Factor on the calibrated threshold; 1 uses it as it is, more marks less.
            stop_shrink: A slice is done when a pass unhides less than this part of its mask, in [0, 1].
            max_passes: A slice is done after this many passes of the masked network.
            batch_size: Slices that the networks see at once.
            seed: Seed of the noise that fills hidden pixels.
            shared_overlap: Slices whose brains overlap by at least this much (intersection over union) share what
                depends on the shape of the brain alone; 1: none do. Below 1 a result may depend on the other slices.

        Returns:
            ``pred_mask`` (N, 1, H, W) bool; ``anomaly_map`` (N, 1, H, W), 0 outside the brain; ``reconstruction``
            (N, M, H, W) of each slice's last pass; ``passes`` (N,), how often a network saw the slice.

        Raises:
            RuntimeError: When the threshold has not been calibrated.
        """
        threshold = float(self.refining_threshold()) * threshold_scale
        if threshold != threshold:
            raise RuntimeError(
                "IterMask has no threshold: run configs/train.json to the end, or set network_def#threshold."
            )
        prepared, factor, offset = self.prepare(image, brain_mask)
        spatial_mask = torch.zeros_like(brain_mask)
        first_score = torch.zeros_like(image[:, :1])
        last_score = torch.zeros_like(first_score)
        reconstruction = prepared.clone()
        passes = torch.zeros(len(image), dtype=torch.int64, device=image.device)

        # First iteration: reconstruct the whole brain and hide what came out worst.
        noise = pass_noise(image, seed)
        with_brain = brain_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        if len(with_brain) == 0:
            return spatial_mask, first_score, image.clone(), passes
        context, used = self.context(prepared[with_brain], brain_mask[with_brain], noise, shared_overlap, batch_size)
        passes[with_brain] = used
        row = torch.zeros_like(passes)  # of each slice, in the context
        row[with_brain] = torch.arange(len(with_brain), device=image.device)
        for part in with_brain.split(batch_size):
            score, filled = self.first_pass(prepared[part], brain_mask[part], context[row[part]])
            first_score[part], reconstruction[part] = score, filled
            spatial_mask[part] = self.first_mask(score, brain_mask[part], threshold_scale)
            passes[part] += 1

        # Next iterations: fill what is hidden, unhide what was filled well; only slices that still shrink go on.
        shrinking = spatial_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        for iteration in range(max_passes):
            if len(shrinking) == 0:
                break
            noise = pass_noise(image, seed + 1 + iteration)
            still = []
            for part in shrinking.split(batch_size):
                hidden = spatial_mask[part]
                score, filled = self.masked_pass(prepared[part], hidden, brain_mask[part], context[row[part]], noise)
                refined = hidden & (score > threshold)
                size, refined_size = hidden.flatten(1).sum(dim=1), refined.flatten(1).sum(dim=1)
                moved = (size - refined_size) >= stop_shrink * size
                last_score[part], reconstruction[part] = score, filled
                passes[part] += 1
                spatial_mask[part[moved]] = refined[moved]
                still.append(part[moved & (refined_size > 0)])
            shrinking = torch.cat(still)
        mask, anomaly_map = self.decide(spatial_mask, first_score, last_score, brain_mask, threshold_scale)
        seen = (passes > 0)[:, None, None, None]
        return mask, anomaly_map, torch.where(seen, reconstruction * factor + offset, image), passes


NETWORKS = ("first_iteration", "masked")


def networks_of(model: IterMask) -> list[str]:
    """The names of a model's networks."""
    return [name for name in NETWORKS if hasattr(model, name)]
