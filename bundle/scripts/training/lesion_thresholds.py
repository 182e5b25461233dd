"""The thresholds of a lesion network: of slices at the end of its training, of volumes for a scanner of one's own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from monai.data.utils import affine_to_spacing
from torch import Tensor

from ..method.lesion_network import LesionNetwork, standardize
from ..method.volume import decide, mark, see_volume
from .calibration import exceeded_by

STEP = 0.25  # logits


@torch.no_grad()
def calibrate_lesions(
    model: LesionNetwork,
    batches: Iterable[dict[str, Tensor]],
    low_threshold: float = -0.5,
    high_threshold: float = 3.0,
    false_positive_rate: float = 0.02,
    certain_rate: float = 0.015,
) -> float:
    """Set the thresholds of volumes to given logits, and those of slices to what healthy slices exceed.

    Painted heads are cleaner than scans, so they count only where there is no scan.

    Args:
        model: Trained; its four thresholds are set.
        batches: Healthy slices under ``image`` and ``brain_mask``, never used for training, and whether they are
            ``certain`` to be healthy, as those of painted heads are.
        low_threshold: Logit above which a voxel of a volume may be lesion.
        high_threshold: Logit that a component must reach.
        false_positive_rate: Part of the healthy pixels above the lower threshold of slices, in (0, 1).
        certain_rate: The same for the higher one.

    Returns:
        The lower threshold of slices.

    Raises:
        ValueError: When there is no healthy pixel.
    """
    model.eval()
    device = model.low_threshold.device
    scores: dict[bool, list[Tensor]] = {False: [], True: []}  # of scans and of painted heads
    for batch in batches:
        image, brain_mask = batch["image"].to(device), batch["brain_mask"].to(device) > 0
        logit = model.predict(standardize(image, brain_mask)[0], brain_mask)[:, model.modalities :]
        score = model.slice_score(logit, brain_mask)
        for own, inside, certain in zip(score, brain_mask, batch["certain"], strict=True):
            scores[bool(certain)].append(own[inside].cpu())
    healthy = torch.cat(scores[False] or scores[True] or [torch.empty(0)])
    model.low_threshold.fill_(low_threshold)
    model.high_threshold.fill_(high_threshold)
    model.slice_low_threshold.fill_(exceeded_by(healthy, false_positive_rate))
    model.slice_high_threshold.fill_(exceeded_by(healthy, certain_rate))
    return float(model.slice_low_threshold)


@torch.no_grad()
def calibrate_volumes(
    model: LesionNetwork, scans: Iterable[dict[str, Any]], largest_ml: float = 1.0, highest: float = 10.0
) -> float:
    """Raise both thresholds of volumes until the median of healthy scans has at most a stated volume marked.

    Args:
        model: Calibrated; its thresholds of volumes are raised, never lowered.
        scans: Healthy scans under ``image`` (M, X, Y, Z), with an affine, and ``brain_mask`` (1, X, Y, Z).
        largest_ml: Volume in ml.
        highest: By how much they are raised at most, in logits.

    Returns:
        By how much they were raised.

    Raises:
        ValueError: When there is no scan, or the highest thresholds still mark more.
    """
    model.eval()
    found = []
    for scan in scans:
        spacing = affine_to_spacing(scan["image"].affine).tolist()
        image, brain_mask = (
            torch.as_tensor(scan[key]).to(model.low_threshold.device) for key in ("image", "brain_mask")
        )
        grid, brain, prediction = see_volume(model, image, brain_mask > 0, spacing)
        shown = brain_mask[(slice(None), *grid.box)] > 0
        found.append((grid, shown, decide(model, prediction[-1], brain, grid.voxel_size), math.prod(spacing) / 1000))
    if not found:
        raise ValueError("No healthy scan to calibrate on: check `dataset_dir`.")
    for step in range(int(highest / STEP) + 1):
        raised = step * STEP
        marked = [
            float((mark(grid, score, low + raised, high + raised) & shown).sum()) * ml
            for grid, shown, (score, low, high), ml in found
        ]
        if statistics.median(marked) <= largest_ml:
            model.low_threshold.add_(raised)
            model.high_threshold.add_(raised)
            return raised
    raise ValueError(
        f"Thresholds raised by {highest:g} still mark {statistics.median(marked):.1f} ml in the median of the healthy "
        f"scans, more than `largest_ml` {largest_ml:g}: are they healthy?"
    )
