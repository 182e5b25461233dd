"""What is probably wrong with a scan or its masks is said and changes nothing; a mask of no brain is refused."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from .brain import background_of
from .morphology import box_of, fill_holes

logger = logging.getLogger(__name__)

MOST_BACKGROUND = 0.1  # part of a brain mask
MOST_MISSED = 0.02  # part of what a scan shows that its brain mask leaves out, be it another tool's
LARGEST_HOLES_ML = 0.5
WHOLE_EXTENT = 60.0  # mm along each axis; a scan that shows less of the head is a slab
SMALLEST_BRAIN_ML, LEAST_BRAIN_ML = 500.0, 20.0  # below them it is doubtful, and none
MOST_CLIPPED = 0.02  # part of a brain; display windows clip 1 %
LEAST_LEVELS = 16  # intensities of a brain; with fewer, many voxels share each
LEAST_PEAK = 2.0  # times as many voxels as the level below


def _tell(name: str, sentence: str, together: str) -> None:
    """Log what is said of one scan, and of many."""
    logger.warning(f"{name} {sentence}", extra={"together": together, "counts": ()})


def check_doubts(image: Tensor, brain_mask: Tensor, given: bool, name: str) -> None:
    """Warn of a header without orientation, a brain mask that misses the brain, and clipped intensities.

    A brain far too small for the whole head that the scan shows is refused.

    Args:
        image: Scan (M, H, W, D).
        brain_mask: Brain voxels (1, H, W, D), bool, with meta data; where it has none, nothing is said.
        given: Whether the mask was given, not found in the scan.
        name: The scan's name.

    Raises:
        ValueError: What `check_size` refuses.
    """
    if not isinstance(image, MetaTensor) or not isinstance(brain_mask, MetaTensor) or brain_mask.ndim != 4:
        return
    voxels, mask = image.as_tensor().cpu().numpy(), brain_mask.as_tensor()[0].cpu().numpy()
    backgrounds = [background_of(torch.from_numpy(modality)) for modality in voxels]
    shown = np.logical_or.reduce([modality != value for modality, value in zip(voxels, backgrounds, strict=True)])
    spacing = nib.affines.voxel_sizes(np.asarray(image.affine.cpu(), dtype=np.float64))
    warn_of_orientation(image, name)
    check_size(mask, shown, spacing, name)
    if given:
        warn_of_misplaced(mask, shown, name)
        warn_of_holes(mask, shown, spacing, name)
    for modality, value in zip(voxels, backgrounds, strict=True):
        inside = modality[mask]
        warn_of_clipping(inside if value is None else inside[inside != value], name)


def warn_of_orientation(image: MetaTensor, name: str) -> None:
    """Warn of a NIfTI file whose header tells no orientation, so that nibabel assumes one."""
    codes = [image.meta.get(f"{form}_code") for form in ("qform", "sform")]
    if all(code is not None and int(code) == 0 for code in codes):
        sentence = (
            "a header without orientation (qform and sform codes of 0): left and right are assumed, compare them in a "
            "viewer, or export the scan again with its orientation."
        )
        _tell(name, f"has {sentence}", sentence)


def check_size(mask: np.ndarray, shown: np.ndarray, spacing: np.ndarray, name: str) -> None:
    """Warn of a whole scan whose brain is too small, and refuse one that holds no brain, such as a lesion mask's.

    Args:
        mask: Brain voxels (H, W, D), bool.
        shown: Voxels unlike the background, bool; all where it is not constant.
        spacing: Of the voxels in mm, (3,).
        name: The scan's name.

    Raises:
        ValueError: When it is no brain at all.
    """
    volume_ml = mask.sum() * spacing.prod() / 1000
    if volume_ml >= SMALLEST_BRAIN_ML or not shown.any():
        return
    extent = np.array([span.stop - span.start for span in box_of(shown)]) * spacing
    if extent.min() >= WHOLE_EXTENT:
        sentence = (
            f"expected {SMALLEST_BRAIN_ML:g} ml or more of a whole one; check the brain mask and the voxel size of "
            "the header."
        )
        if volume_ml < LEAST_BRAIN_ML:
            raise ValueError(f"{name} has a brain of {volume_ml:.3g} ml, {sentence}")
        _tell(name, f"has a brain of {volume_ml:.3g} ml, {sentence}", f"too small a brain, {sentence}")


def warn_of_misplaced(mask: np.ndarray, shown: np.ndarray, name: str) -> None:
    """Warn of a brain mask that lies beside the brain; arguments as of `check_size`."""
    beside, missed = (mask & ~shown).sum() / mask.sum(), (shown & ~mask).sum() / max(1, shown.sum())
    if beside > MOST_BACKGROUND and missed > MOST_MISSED:
        sentence = "expected a mask of this scan; make it again, or set `brain_mask` to null."
        _tell(
            name,
            f"has a brain mask of which {beside:.0%} is background while {missed:.0%} of the scan lies outside of it, "
            f"{sentence}",
            f"a brain mask that lies beside the brain, {sentence}",
        )


def warn_of_holes(mask: np.ndarray, shown: np.ndarray, spacing: np.ndarray, name: str) -> None:
    """Warn of a brain mask with holes where the scan shows something; arguments as of `check_size`."""
    box = box_of(mask)
    holes_ml = (fill_holes(mask[box]) & ~mask[box] & shown[box]).sum() * spacing.prod() / 1000
    if holes_ml > LARGEST_HOLES_ML:
        sentence = "where nothing is marked; fill them if lesions were cut out of it."
        _tell(
            name, f"has a brain mask with {holes_ml:.3g} ml of holes, {sentence}", f"holes in a brain mask, {sentence}"
        )


def warn_of_clipping(intensities: np.ndarray, name: str) -> None:
    """Warn of a brain of which many voxels share the highest intensity, and far fewer the one below.

    Args:
        intensities: Of the brain's voxels (n,).
        name: The scan's name.
    """
    if not len(intensities) or (part := np.mean(intensities == intensities.max())) <= MOST_CLIPPED:
        return
    levels, voxels = np.unique(intensities, return_counts=True)
    if len(levels) >= LEAST_LEVELS and voxels[-1] > LEAST_PEAK * voxels[-2]:
        sentence = "what lies above is lost; export the scan again without clipping."
        _tell(
            name,
            f"is clipped: {part:.1%} of the brain has its highest intensity, expected at most {MOST_CLIPPED:.0%}; "
            f"{sentence}",
            f"clipped at the brain's highest intensity, {sentence}",
        )
