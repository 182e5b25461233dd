"""One evaluated case: its slices with what the inferer made of them, and what they tell without any threshold."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from torch import Tensor

from ..data.brain import lesion_of
from .metrics import ssim_map

logger = logging.getLogger(__name__)

REFERENCE_SIZE = 128


def as_slices(array: Tensor) -> Tensor:
    """Slices (D, C, H, W) of a volume (C, H, W, D); a slice (C, H, W) becomes a batch of one."""
    plain = torch.as_tensor(array).detach().float().cpu().as_subclass(Tensor)
    return plain[None] if plain.ndim == 3 else plain.movedim(-1, 0)


def _spacing(image: Tensor) -> tuple[float, ...]:
    """Of a volume's slices, rows and columns in mm; 1 where it has no meta data, or is a slice."""
    if not isinstance(image, MetaTensor) or image.ndim < 4:
        return 1.0, 1.0, 1.0
    rows, columns, slices = affine_to_spacing(image.affine).tolist()
    return slices, rows, columns


@dataclass
class Sample:
    """One case taken apart: its D slices, and what the inferer made of them.

    ``image`` and ``reconstruction`` are (D, M, H, W), the others (D, 1, H, W); ``brain_mask``, ``label`` and
    ``pred_mask`` are bool. ``voxel_ml`` is the volume of a voxel, NaN where it is not known; ``spacing`` that between
    slices, rows and columns in mm, 1 where it is not known. ``threshold`` is that of the anomaly map.
    """

    name: str
    image: Tensor
    brain_mask: Tensor
    label: Tensor
    pred_mask: Tensor
    anomaly_map: Tensor
    reconstruction: Tensor
    passes: Tensor
    threshold: float
    voxel_ml: float = math.nan
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_item(cls, item: Mapping) -> Sample:
        """Read one decollated item of an evaluator.

        Args:
            item: ``image`` (M + 1, H, W[, D]), modalities and brain mask; ``label`` (1, H, W[, D]), or
                none when it is healthy; ``pred`` (M + 4, H, W[, D]), mask, anomaly map, reconstruction, passes
                and threshold; ``case``; ``slice`` and ``voxel_ml`` if it has them.

        Raises:
            ValueError: When ``pred`` has other channels.
        """
        inputs, pred = as_slices(item["image"]), as_slices(item["pred"])
        label = as_slices(item["label"]) if "label" in item else torch.zeros_like(inputs[:, :1])
        lesion = lesion_of(label, str(item["case"]))
        channels = inputs.shape[1] + 3
        if pred.shape[1] != channels:
            raise ValueError(
                "The inferer must return mask, anomaly_map, reconstruction, passes and threshold, "
                f"{channels} channels in all, got {pred.shape[1]}: set inferer#outputs to these five."
            )
        name = str(item["case"]) if "slice" not in item else f"{item['case']}_{int(item['slice']):03d}"
        return cls(
            name=name,
            image=inputs[:, :-1],
            brain_mask=inputs[:, -1:] > 0.5,
            label=lesion,
            pred_mask=pred[:, :1] > 0.5,
            anomaly_map=pred[:, 1:2],
            reconstruction=pred[:, 2:-2],
            passes=pred[:, -2:-1],
            threshold=float(pred[:, -1].max()),
            voxel_ml=float(item.get("voxel_ml", math.nan)),
            spacing=_spacing(item["image"]),
        )

    def select(self, chosen: Tensor) -> Sample:
        """The chosen slices alone, by a bool (D,)."""
        parts: dict[str, Any] = {key: value[chosen] for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)


def processed_sample(item: Mapping, output: Mapping) -> Sample:
    """One decollated item of an evaluator with its output, after postprocessing, which changes the output alone."""
    return Sample.from_item({**item, **{key: value for key, value in output.items() if value is not None}})


def warn_of_label(sample: Sample) -> None:
    """Warn of a label that is probably none of lesions: it covers most of the brain, or lies outside of it."""
    lesion, brain = int(sample.label.sum()), int(sample.brain_mask.sum())
    inside = int((sample.label & sample.brain_mask).sum())
    if 2 * inside > brain or 2 * inside < lesion:
        sentence = "expected lesions inside the brain; check whether it is one of tissues, or an inverted mask."
        logger.warning(
            f"{sample.name} has a label that covers {inside / max(1, brain):.0%} of the brain, with "
            f"{1 - inside / max(1, lesion):.0%} of it outside, {sentence}",
            extra={"together": f"labels of most of the brain, or mostly outside of it, {sentence}", "counts": ()},
        )


def healthy_ssim(sample: Sample, data_range: float) -> dict[str, float]:
    """SSIM of the reconstruction where there is no lesion, everything else set to 0 in both images.

    Args:
        sample: A case; slices without brain do not count.
        data_range: Width of the intensities.

    Returns:
        ``ssim_healthy``, over the whole slices as published, where the background counts as perfect, and
        ``ssim_healthy_brain``, over the healthy brain pixels alone.
    """
    healthy = sample.brain_mask & ~sample.label
    used = healthy.flatten(1).any(dim=1)
    if not used.any():
        return {"ssim_healthy": math.nan, "ssim_healthy_brain": math.nan}
    healthy = healthy[used]
    similarity = ssim_map(sample.image[used] * healthy, sample.reconstruction[used] * healthy, data_range)
    inside = (similarity * healthy).sum() / (healthy.sum() * similarity.shape[1])
    return {"ssim_healthy": float(similarity.mean()), "ssim_healthy_brain": float(inside)}


def case_row(sample: Sample, data_range: float) -> dict[str, Any]:
    """The columns of a case that need no threshold."""
    height, width = sample.image.shape[-2:]
    lesion_pixels = sample.label.flatten(1).sum(dim=1)
    healthy = sample.brain_mask & ~sample.label
    with_brain = sample.brain_mask.flatten(1).any(dim=1)
    passes = sample.passes.flatten(1).amax(dim=1)[with_brain]
    false_positives = int((sample.pred_mask & healthy).sum())
    return {
        "case": sample.name,
        "lesion_pixels": int(lesion_pixels.sum()),
        "lesion_pixels_128": float(lesion_pixels.max()) * REFERENCE_SIZE**2 / (height * width),
        "brain_pixels": int(sample.brain_mask.sum()),
        "false_positive_pixels": false_positives,
        "false_positive_ml": false_positives * sample.voxel_ml,
        "false_positive_fraction": false_positives / max(1, int(healthy.sum())),
        "network_passes": float(passes.mean()) if len(passes) else 0.0,
        **healthy_ssim(sample, data_range),
    }
