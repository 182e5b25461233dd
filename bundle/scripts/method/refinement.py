"""The refinement of a mask: the loop that all methods share."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .description import DESCRIPTION_BYTES, to_description

FORMAT = 1  # of the description; raise it when older programs would misread a file
SCALING = {"upper_fraction": 0.9, "lower_fraction": 0.02, "lower_over_volume": False}


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


class Refinement(nn.Module):
    """Iterative refinement of a spatial mask (Liang et al. 2024, section 2.3), and what is kept beside the weights.

    A method is a subclass that says what its networks see and how they are scored: `IterMask`, the published one, and
    `ProbabilisticIterMask`, the default. Its buffers are the thresholds, which are NaN until they are calibrated on
    healthy slices; ``field_of_view``, height and width of the training slices in mm, zeros where unknown; ``planes``,
    the lowest and highest position of the training slices along the scanner's z axis in mm, inf and -inf where
    unknown; and ``description``, all settings as text, see `to_description`.

    Args:
        modalities: Names of the M modalities, in the order of the channels.
        image_size: Height and width in pixels that the networks work at.
        scaling: How preprocessing scaled the training slices: arguments of `scale_brain_intensity`.
        threshold: First value of all thresholds.
    """

    title = ""  # the name that tables and pictures give the method
    reconstructs = True  # whether the inferer gives a reconstruction
    networks: list[str] = []  # names of the attributes that hold them
    fast_passes = 100  # after the first, in fast mode
    thresholds: Sequence[str] = ("threshold",)
    threshold: Tensor
    field_of_view: Tensor
    planes: Tensor
    description: Tensor

    def __init__(
        self,
        modalities: Sequence[str],
        image_size: int,
        scaling: Mapping[str, object] | None = None,
        threshold: float = float("nan"),
    ):
        super().__init__()
        self.modality_names = list(modalities)
        self.modalities = len(self.modality_names)
        self.image_size = int(image_size)
        self.scaling: dict[str, object] = {**SCALING, **(scaling or {})}
        for name in self.thresholds:
            self.register_buffer(name, torch.tensor(float(threshold)))
        self.register_buffer("field_of_view", torch.zeros(2))
        self.register_buffer("planes", torch.tensor([math.inf, -math.inf]))
        self.register_buffer("description", torch.zeros(DESCRIPTION_BYTES, dtype=torch.uint8))

    def describe(self, **settings: object) -> None:
        """Note the settings in ``description``; a subclass calls it at the end of its constructor, with its own."""
        sizes = {name: getattr(getattr(self, name), "size", None) for name in self.networks}
        common = {"format": FORMAT, "method": type(self).__name__, "modalities": self.modality_names}
        common |= {"image_size": self.image_size, **self.scaling, "network": sizes[self.networks[0]]}
        self.description.copy_(to_description({**common, **settings}))

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
        """Give the slices as the networks see them, and factor and offset (N, M, 1, 1) that undo it."""
        raise NotImplementedError

    def first_pass(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct the whole brain while all of it is hidden; give score (n, 1, H, W) and reconstruction."""
        raise NotImplementedError

    def first_mask(self, score: Tensor, brain_mask: Tensor, threshold_scale: float) -> Tensor:
        """Choose by the score of the first pass what to hide, (n, 1, H, W) bool."""
        raise NotImplementedError

    def masked_pass(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct what is hidden from the rest; give score (n, 1, H, W) and reconstruction."""
        raise NotImplementedError

    def refining_threshold(self) -> Tensor:
        """Give the score above which a hidden pixel stays hidden."""
        raise NotImplementedError

    def decide(
        self, spatial_mask: Tensor, first_score: Tensor, last_score: Tensor, brain_mask: Tensor, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Turn what is left hidden and the scores into mask and anomaly map, (N, 1, H, W)."""
        raise NotImplementedError

    def refine(
        self,
        image: Tensor,
        brain_mask: Tensor,
        threshold_scale: float = 1.0,
        stop_shrink: float = 0.01,
        max_passes: int = 100,
        batch_size: int = 32,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shrink a mask over the brain until what stays hidden cannot be reconstructed: the anomaly.

        The result of a slice does not depend on the other slices of the batch, and the same input and seed give the
        same result.

        Args:
            image: Slices (N, M, H, W), brain scaled to [-3, 3].
            brain_mask: Brain pixels (N, 1, H, W), bool.
            threshold_scale: Factor on the calibrated thresholds; 1 uses them as they are, more marks less.
            stop_shrink: A slice is done when a pass unhides less than this part of its mask, in [0, 1].
            max_passes: A slice is done after this many passes of the masked network.
            batch_size: Slices that the networks see at once.
            seed: Seed of the noise that fills hidden pixels.

        Returns:
            ``mask`` (N, 1, H, W) bool; ``anomaly_map`` (N, 1, H, W), 0 outside the brain; ``reconstruction``
            (N, M, H, W) of each slice's last pass; ``passes`` (N,), how often a network saw the slice.

        Raises:
            RuntimeError: When a threshold has not been calibrated.
        """
        self.check_calibrated()
        threshold = float(self.refining_threshold()) * threshold_scale
        prepared, factor, offset = self.prepare(image, brain_mask)
        spatial_mask, first_score = torch.zeros_like(brain_mask), torch.zeros_like(image[:, :1])
        last_score, reconstruction = torch.zeros_like(first_score), prepared.clone()
        passes = torch.zeros(len(image), dtype=torch.int64, device=image.device)

        # First iteration: reconstruct the whole brain and hide what came out worst.
        shrinking = brain_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        for start in range(0, len(shrinking), batch_size):
            part = shrinking[start : start + batch_size]
            first_score[part], reconstruction[part] = self.first_pass(prepared[part], brain_mask[part])
            spatial_mask[part] = self.first_mask(first_score[part], brain_mask[part], threshold_scale)
            passes[part] += 1

        # Next iterations: fill what is hidden, unhide what was filled well; only slices that still shrink go on.
        shrinking = spatial_mask.flatten(1).any(dim=1).nonzero()[:, 0]
        for iteration in range(max_passes):
            if len(shrinking) == 0:
                break
            noise, still = pass_noise(image, seed + 1 + iteration), []
            for part in shrinking.split(batch_size):
                hidden = spatial_mask[part]
                score, filled = self.masked_pass(prepared[part], hidden, brain_mask[part], noise)
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

    def check_calibrated(self) -> None:
        """Refuse to segment with a threshold that was never measured.

        Raises:
            RuntimeError: When one is NaN.
        """
        for threshold in self.threshold_values():
            if bool(threshold.isnan()):
                raise RuntimeError(
                    "The model lacks a threshold: run configs/train.json to the end, or `run calibrate` on its file."
                )

    def map_threshold(self, threshold_scale: float = 1.0, by_volume: bool = False) -> float:
        """Give the threshold of the anomaly map of slices, or of whole volumes that a network of their own scores."""
        return float(self.threshold) * threshold_scale

    def rule_for_volumes(self, threshold_rule: str) -> str:
        """Give a rule of `THRESHOLD_RULES` back.

        Raises:
            ValueError: When it is a choice that the model does not have: only a network for whole volumes does.
        """
        if threshold_rule != "prior" and not hasattr(self, "lesions"):
            raise ValueError(
                f"`threshold_rule` {threshold_rule} is for whole volumes, which this model has no network for: leave "
                "it out, or add the network by configs/volumes.json."
            )
        return threshold_rule

    def threshold_values(self) -> list[Tensor]:
        """Give the buffers that calibration sets."""
        return [self.threshold]
