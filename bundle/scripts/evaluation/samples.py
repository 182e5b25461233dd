"""One evaluated case: its slices with what the inferer made of them, and what they tell without any threshold."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from torch import Tensor

from ..data.brain import lesion_of
from ..data.morphology import box_of
from ..data.nifti import voxel_ml
from .metrics import SSIM_WINDOW, ssim_map

logger = logging.getLogger(__name__)

REFERENCE_SIZE = 128
SLICES_AT_ONCE = 16  # of large volumes, so that what is computed of them needs little memory


def _voxel(image: Tensor) -> dict[str, Any]:
    """The volume of a voxel, and its size as `Sample` has it; nothing where it has no meta data, or is a slice."""
    if not isinstance(image, MetaTensor) or image.ndim < 4:
        return {}
    rows, columns, slices = affine_to_spacing(image.affine).tolist()
    return {"voxel_ml": voxel_ml(image.affine.numpy()), "spacing": (slices, rows, columns)}


@dataclass
class Sample:
    """One case taken apart: its D slices around the brain, and what the inferer made of them.

    ``image`` and ``reconstruction`` (None where the model makes none) are (D, M, H, W), the others (D, 1, H, W);
    ``brain_mask``, ``label`` and ``pred_mask`` are bool. What lies far from brain, label and mask is cut off; ``grid``
    is the size of a whole slice, ``first_slice`` the number of slices left out before. ``voxel_ml`` is the volume of a
    voxel, NaN where it is not known; ``spacing`` that between slices, rows and columns in mm, 1 where it is not known.
    ``threshold`` is that of the anomaly map, ``iterations`` (D,) how often the mask of each slice was refined.
    """

    name: str
    image: Tensor
    brain_mask: Tensor
    label: Tensor
    pred_mask: Tensor
    anomaly_map: Tensor
    iterations: Tensor
    threshold: float
    grid: tuple[int, int]
    reconstruction: Tensor | None = None
    first_slice: int = 0
    voxel_ml: float = math.nan
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_item(cls, item: Mapping, outputs: Sequence[str]) -> Sample:
        """Read one decollated item of an evaluator.

        Args:
            item: ``image`` (M + 1, H, W[, D]), modalities and brain mask; ``label`` (1, H, W[, D]), or none when it is
                healthy; ``pred`` (K, H, W[, D]); ``case``; ``slice`` if it has one.
            outputs: What the channels of ``pred`` are, as the inferer names them; ``reconstruction`` are M of them.
        """
        name = str(item["case"]) + (f"_{int(item['slice']):03d}" if "slice" in item else "")
        inputs = _plain(item["image"])
        label = lesion_of(_plain(item["label"]), name) if "label" in item else torch.zeros_like(inputs[:1]).bool()
        numbers = [len(inputs) - 1 if output == "reconstruction" else 1 for output in outputs]
        parts = dict(zip(outputs, _plain(item["pred"]).split(numbers), strict=True))
        threshold = float(parts.pop("threshold").max())
        pred_mask, brain_mask = parts.pop("mask") > 0.5, inputs[-1:] > 0.5
        parts |= {"image": inputs[:-1], "brain_mask": brain_mask, "label": label, "pred_mask": pred_mask}
        shown = (brain_mask | pred_mask | label)[0].numpy()
        shown = shown if shown.any() else ~shown
        rows, columns, _ = box_of(shown, SSIM_WINDOW // 2 + 1)  # with room for the window of the SSIM
        slices = box_of(shown)[2]
        found: dict[str, Any] = {
            key: part[:, rows, columns, slices].movedim(-1, 0).contiguous() for key, part in parts.items()
        }
        found["iterations"] = found["iterations"].flatten(1).amax(dim=1)
        found |= {"grid": tuple(inputs.shape[1:3]), "first_slice": slices.start, **_voxel(item["image"])}
        return cls(name=name, threshold=threshold, **found)


def _plain(array: Tensor) -> Tensor:
    """A volume (C, H, W, D); a slice (C, H, W) becomes one of a single slice."""
    plain = torch.as_tensor(array).detach().float().cpu().as_subclass(Tensor)
    return plain[..., None] if plain.ndim == 3 else plain


def warn_of_label(sample: Sample) -> None:
    """Warn of a label that is probably none of lesions: it covers most of the brain, or lies outside of it."""
    lesion, brain = int(sample.label.sum()), int(sample.brain_mask.sum())
    inside = int((sample.label & sample.brain_mask).sum())
    if 2 * inside > brain or 2 * inside < lesion:
        logger.warning(
            f"{sample.name} has a label that covers {inside / max(1, brain):.0%} of the brain, with "
            f"{1 - inside / max(1, lesion):.0%} of it outside, expected lesions inside the brain; check whether it is "
            "one of tissues, or an inverted mask."
        )


def healthy_ssim(sample: Sample, data_range: float) -> dict[str, float]:
    """SSIM of the reconstruction where there is no lesion, everything else set to 0 in both images.

    ``ssim_healthy`` is that over whole slices with brain as published, where the background counts as perfect, and
    ``ssim_healthy_brain`` that over the healthy brain pixels alone; NaN without a reconstruction.
    """
    healthy = sample.brain_mask & ~sample.label
    used = healthy.flatten(1).any(dim=1).nonzero()[:, 0]
    if sample.reconstruction is None or not len(used):
        return {"ssim_healthy": math.nan, "ssim_healthy_brain": math.nan}
    different = inside = 0.0
    for part in used.split(SLICES_AT_ONCE):
        shown = healthy[part]
        similarity = ssim_map(sample.image[part] * shown, sample.reconstruction[part] * shown, data_range)
        different += float((1 - similarity).double().sum())
        inside += float((similarity * shown).double().sum())
    modalities = sample.image.shape[1]
    return {
        "ssim_healthy": 1 - different / (len(used) * modalities * math.prod(sample.grid)),
        "ssim_healthy_brain": inside / (int(healthy.sum()) * modalities),
    }


def case_row(sample: Sample, data_range: float) -> dict[str, Any]:
    """The columns of a case that need no threshold."""
    lesion_pixels = sample.label.flatten(1).sum(dim=1)
    healthy = sample.brain_mask & ~sample.label
    iterations = sample.iterations[sample.brain_mask.flatten(1).any(dim=1)]
    false_positives = int((sample.pred_mask & healthy).sum())
    return {
        "case": sample.name,
        "lesion_pixels": int(lesion_pixels.sum()),
        "lesion_pixels_128": float(lesion_pixels.max()) * REFERENCE_SIZE**2 / math.prod(sample.grid),
        "brain_pixels": int(sample.brain_mask.sum()),
        "false_positive_pixels": false_positives,
        "false_positive_ml": false_positives * sample.voxel_ml,
        "false_positive_fraction": false_positives / max(1, int(healthy.sum())),
        "iterations": float(iterations.mean()) if len(iterations) else 0.0,
        **healthy_ssim(sample, data_range),
    }
