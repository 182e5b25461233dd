"""Brain masks of scans that still have their skull, by deepbet (requirements-scans.txt)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import optional_import
from torch import Tensor

from .brain import NoBackground, brain_mask_of, sign_of_skull
from .nifti import voxel_ml

LEAST_EXTENT = 60.0  # mm along each axis; less of a head does not tell deepbet where the brain is
LEAST_BRAIN_ML = 200.0
OTHERWISE = (
    "give brain masks, or set `brain_extraction` to background where all that differs from the background is brain."
)


@cache
def _deepbet() -> Any:
    """The networks of deepbet, on the GPU where there is one.

    Raises:
        ValueError: When deepbet is not installed.
    """
    brain_extraction, found = optional_import("deepbet", name="BrainExtraction")
    if not found:
        raise ValueError(
            "still has its skull, and deepbet, which would strip it, is not installed: run pip install deepbet "
            f"(requirements-scans.txt names the versions tried), {OTHERWISE}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it loads its networks by torch.jit
        return brain_extraction(no_gpu=not torch.cuda.is_available())


def strip(image: MetaTensor) -> Tensor:
    """Find the brain, with the fluid around it, in a scan that has its skull.

    The first modality is looked at, in voxels of any size and axes of any order; nothing is registered.

    Args:
        image: Scan (M, H, W, D).

    Returns:
        Brain voxels (1, H, W, D), bool.

    Raises:
        ValueError: When deepbet is not installed, the scan shows too little of the head, or no brain is found in it.
    """
    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    extent = nib.affines.voxel_sizes(affine) * image.shape[1:]
    if extent.min() < LEAST_EXTENT:
        raise ValueError(
            f"still has its skull, and shows too little of the head ({extent.min():.0f} mm along one axis, expected "
            f"{LEAST_EXTENT:g} or more) to strip it: check whether the header gives the voxel size in mm, {OTHERWISE}"
        )
    extraction = _deepbet()
    voxels = image.as_tensor()[0].float().cpu().numpy()
    try:
        found = np.asarray(extraction.run(nib.Nifti1Image(voxels, affine))[1].dataobj) > 0
    except (AssertionError, ValueError, RuntimeError):  # what deepbet raises where it sees no head
        found = np.zeros(voxels.shape, bool)
    if found.sum() * voxel_ml(affine) < LEAST_BRAIN_ML:
        raise ValueError(f"still has its skull, and deepbet finds no brain in it: check the file, {OTHERWISE}")
    return torch.from_numpy(found)[None].to(image.device)


def brain_mask_or_strip(image: Tensor, brain_mask: Tensor | None = None) -> Tensor:
    """The brain mask of a scan, as `brain_mask_of`, but a scan without one that has its skull is stripped.

    Args:
        image: Scan (M, H, W[, D]); one without meta data, and a slice, is never stripped.
        brain_mask: A mask (1, H, W[, D]), above 0.5 in the brain.

    Returns:
        Brain voxels (1, H, W[, D]), bool.

    Raises:
        ValueError: As `brain_mask_of` and `strip`.
    """
    if brain_mask is not None or not isinstance(image, MetaTensor) or image.ndim != 4:
        return brain_mask_of(image, brain_mask)
    try:
        found = brain_mask_of(image.as_tensor())
    except NoBackground:
        return strip(image)
    return strip(image) if sign_of_skull(image, MetaTensor(found, affine=image.affine)) else found
