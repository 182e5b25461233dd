"""Finding the brain of a scan, and telling scans that still have their skull."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from .morphology import box_of, fill_holes, largest_component
from .nifti import voxel_ml

WHOLE = 1e-3  # what scaled integers may differ from whole numbers
LEAST_BACKGROUND = 0.5  # part of a scan's edges that has the background value, where that is constant
LARGEST_BRAIN_ML = 2200.0
LARGEST_COVER = 0.9
RIM_DEPTH = 24.0  # mm below the surface of a head within which its skull lies
LEAST_RIM = 0.15  # of the range of intensities (2nd to 90th percentile); brains alone stay below 0.1
RIM_SLICES = 24


class NoBackground(ValueError):
    """The sentence of a scan whose background is not constant, so that it tells no brain."""


def all_finite(image: Tensor) -> bool:
    """Whether all voxels are finite numbers; a finite sum tells it 50 times faster than looking at each."""
    return bool(torch.isfinite(image.sum()) or torch.isfinite(image).all())


def background_of(image: Tensor) -> float | None:
    """The value of a scan's background: the most frequent one at the edges of its box.

    Args:
        image: One modality (H, W[, D]). An axis of one voxel counts as all edge, so a slice is judged by its border.

    Returns:
        The value, or None where less than half of the edges has it: the scan was not brain-extracted.
    """
    voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
    if voxels.ndim == 2:
        voxels = voxels[..., None]
    x, y, z = (slice(None, None, max(1, n - 1)) for n in voxels.shape)  # the first and the last
    edges = [voxels[:, y, z].flatten(), voxels[x, :, z].flatten(), voxels[x, y].flatten()]
    values, counts = torch.cat(edges).unique(return_counts=True)
    most = counts.argmax()
    return float(values[most]) if counts[most] >= LEAST_BACKGROUND * counts.sum() else None


def shown_in(image: Tensor) -> Tensor:
    """Voxels (1, H, W[, D]) that differ from the background in any modality (M, H, W[, D]).

    Raises:
        NoBackground: When the background of a modality is not constant.
    """
    shown = torch.zeros_like(image[:1], dtype=torch.bool)
    for channel, modality in enumerate(image):
        background = background_of(modality)
        if background is None:
            raise NoBackground(
                f"has no constant background in channel {channel}, so it still has its skull or noise around it: "
                "extract the brain first, give brain masks, or set `brain_extraction` to auto."
            )
        shown |= modality != background
    return shown


def brain_mask_of(image: Tensor, brain_mask: Tensor | None = None) -> Tensor:
    """The brain mask of a scan: the voxels that differ from the background in any modality and are in a given mask.

    Only a background of one value tells the brain from what is around it, be it 0, negative or above 0; where there is
    none, a given mask is taken as it is.

    Args:
        image: Brain-extracted scan (M, H, W[, D]), or any with a brain mask.
        brain_mask: A mask (1, H, W[, D]), above 0.5 in the brain.

    Returns:
        Brain voxels (1, H, W[, D]), bool.

    Raises:
        NoBackground: When no mask is given and the background is not constant.
        ValueError: When the scan has voxels that are no number or all of one value, the mask is empty or does not fit.
    """
    if not all_finite(image):
        raise ValueError("has NaN or infinite voxels: replace them, or exclude the case.")
    if brain_mask is None:
        found = shown_in(image)
        if not torch.count_nonzero(found):  # twice as fast as any()
            raise ValueError("has no voxel that differs from its background: check the file, or exclude the case.")
        return found
    if brain_mask.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"has a brain mask of shape {list(brain_mask.shape[1:])}, but voxels {list(image.shape[1:])}: resample it."
        )
    if not all_finite(brain_mask):
        raise ValueError("has a brain mask with NaN or infinite voxels: make it again.")
    found = brain_mask[:1] > 0.5
    with suppress(NoBackground):
        found = found & shown_in(image)
    if not torch.count_nonzero(found):
        raise ValueError(
            "has a brain mask that is empty, or marks background alone: make it again, or set `brain_mask` to null."
        )
    return found


def lesion_of(label: Tensor, name: str, values: Sequence[int] | None = None) -> Tensor:
    """The lesion voxels of a lesion mask.

    Args:
        label: Whole numbers from 0, of any shape.
        name: The case's name.
        values: Those that count as lesion; None: all above 0.

    Returns:
        Bool, of the same shape.

    Raises:
        ValueError: When a voxel is no number, no whole one, or below 0: nobody knows then what is meant.
    """
    voxels = label.as_tensor() if isinstance(label, MetaTensor) else label
    found = voxels.cpu().numpy()  # PyTorch's threads stand still in a process that was forked from one that used them
    with np.errstate(invalid="ignore"):  # what is no finite number is no whole one
        odd = ~(np.abs(found - np.round(found)) <= WHOLE) | (found < -WHOLE)
    if odd.any():
        raise ValueError(
            f"{name} has a lesion mask with voxels of {found[odd][0]:.3g}, expected whole numbers from 0 (0 is no "
            "lesion): threshold it, or exclude the case."
        )
    lesion = found > 0.5 if values is None else np.isin(np.round(found), values)
    return torch.from_numpy(lesion).to(voxels.device)


def _rim_of(image: np.ndarray, brain_mask: np.ndarray, spacing: tuple[float, float]) -> float:
    """How far the darkest depth below the outline of a brain lies below what is brightest outside and inside it.

    Scalp, skull and brain make bright, dark, bright; in a brain alone little lies outside the darkest depth. A depth
    is a millimeter, or a pixel where that is more, and has the median of its voxels in the larger axial slices. The
    result is in parts of the range of intensities (2nd to 90th percentile).
    """
    area = brain_mask.sum(axis=(0, 1))
    large = np.flatnonzero(area >= 0.5 * area.max())
    chosen = np.unique(large[np.linspace(0, len(large) - 1, min(RIM_SLICES, len(large))).round().astype(int)])
    depths, values = [], []
    for k in chosen:
        plane = np.ascontiguousarray(brain_mask[..., k])  # its pixels lie far apart
        box = box_of(plane)
        inside = largest_component(fill_holes(plane[box]))
        depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1]
        depths.append(depth[inside])
        values.append(image[..., k][box][inside])
    depth, value = np.concatenate(depths), np.concatenate(values).astype(np.float64)
    step = max(1.0, *spacing)
    level = np.minimum((depth - 1e-6) // step, RIM_DEPTH // step)
    medians = np.array([np.median(value[level == each]) for each in np.unique(level)])
    brightest = np.minimum(np.maximum.accumulate(medians), np.maximum.accumulate(medians[::-1])[::-1])
    low, high = np.percentile(value, [2, 90])
    return float((brightest - medians).max() / max(high - low, np.finfo(float).tiny))


def sign_of_skull(image: Tensor, brain_mask: MetaTensor) -> str | None:
    """What tells that a scan still has its skull, or a rim of it.

    Args:
        image: Scan (M, H, W, D).
        brain_mask: What counts as brain (1, H, W, D), bool, with meta data.

    Returns:
        The end of "... may still have its skull: ", or None.
    """
    affine = np.asarray(brain_mask.affine)
    inside = brain_mask.as_tensor()[0].cpu().numpy()
    voxels = int(inside.sum())
    volume_ml, covered = voxels * voxel_ml(affine), voxels / inside.size
    if volume_ml > LARGEST_BRAIN_ML or covered > LARGEST_COVER:
        return f"{volume_ml:.0f} ml, {covered:.0%} of the volume, count as brain"
    rows, columns, _ = nib.affines.voxel_sizes(affine)
    for modality in image:
        if _rim_of(modality.cpu().numpy(), inside, (float(rows), float(columns))) > LEAST_RIM:
            return "a bright rim, parted by a dark one from what is inside, counts as brain"
    return None
