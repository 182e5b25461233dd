"""Quality checks: what is probably wrong with a scan, its masks or its result is said and changes nothing.

Each check gives a sentence without its subject, such as "is clipped: ...", or None; what allows no result raises it.
A check takes some of ``mask``, the brain's voxels (H, W, D), ``shown``, those unlike the background (all where it is
not constant), both bool, ``spacing`` of the voxels in mm, and ``intensities`` of the brain's voxels (n,).
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from .brain import background_of, sign_of_skull
from .morphology import box_of, fill_holes
from .nifti import voxel_ml

MOST_BACKGROUND = 0.1  # part of a brain mask
MOST_MISSED = 0.02  # part of what a scan shows that its brain mask leaves out, be it another tool's
LARGEST_HOLES_ML = 0.5
WHOLE_EXTENT = 60.0  # mm along each axis; a scan that shows less of the head along one is a slab
WHOLE_VOXELS = 10_000  # of a brain; with as many, a scan that is short along two axes is no slab, but too small
BRAIN_ML, POSSIBLE_ML = (200.0, 2500.0), (20.0, 20_000.0)  # outside them a brain is doubtful, and none
MOST_CLIPPED = 0.02  # part of a brain; display windows clip 1 %
LEAST_LEVELS = 16  # intensities of a brain
LEAST_PEAK = 2.0  # times as many voxels as the level below
LEAST_WRAPPED = 10  # voxels
BRIGHT_AROUND = 0.35  # part of the voxels around the darkest that are of the brightest quarter; else 0.2 or fewer
DARK_FLUID = ("flair", "t1")  # modalities in which fluid is darker than tissue
BRIGHT_FLUID = 1.5  # times as far from the median lies the 95th percentile than the 2nd (1.2 in FLAIRs)
MOST_MARKED = 0.15  # part of a brain


def check_scan(
    image: MetaTensor, brain_mask: MetaTensor, given: Tensor | None = None, modalities: Sequence[str] = ()
) -> list[str]:
    """What is to be said of a scan and its brain mask.

    Args:
        image: Scan (M, H, W, D).
        brain_mask: Brain voxels (1, H, W, D), bool.
        given: The mask that was given (1, H, W, D), if any.
        modalities: Names of the M channels, where they are known.

    Raises:
        ValueError: When the brain is far too small or too large, or its brightest voxels were wrapped.
    """
    voxels, mask = image.as_tensor().cpu().numpy(), brain_mask.as_tensor()[0].cpu().numpy()
    backgrounds = [background_of(modality) for modality in image]
    shown = np.logical_or.reduce([modality != value for modality, value in zip(voxels, backgrounds, strict=True)])
    spacing = nib.affines.voxel_sizes(np.asarray(image.affine.cpu(), dtype=np.float64))
    found = [_check_orientation(image.meta), _check_gaps(shown), size := _check_size(mask, shown, spacing)]
    if given is not None:
        found += [_check_place(given[0].cpu().numpy() > 0.5, shown), _check_holes(mask, shown, spacing)]
    if size is None and (sign := sign_of_skull(image, brain_mask)):
        found.append(f"may still have its skull: {sign}; extract the brain first, or give brain masks.")
    for modality, value, name in zip(voxels, backgrounds, [*modalities] or [""] * len(voxels), strict=True):
        _check_wrapped(modality, mask)
        inside = modality[mask]
        found.append(check_levels(inside if value is None else inside[inside != value]))
        if name.lower().startswith(DARK_FLUID):
            found.append(_check_fluid(inside, name))
    return [sentence for sentence in found if sentence]


def _check_orientation(meta: dict) -> str | None:
    """Tells a NIfTI file whose header tells no orientation, so that nibabel assumes one."""
    codes = [meta.get(f"{form}_code") for form in ("qform", "sform")]
    if all(code is not None and int(code) == 0 for code in codes):
        return (
            "has a header without orientation (qform and sform codes of 0): left and right are assumed, compare them "
            "in a viewer, or export the scan again with its orientation."
        )
    return None


def _check_gaps(shown: np.ndarray) -> str | None:
    """Tells a scan with empty slices between others."""
    for axis, name in enumerate(("first", "second", "third")):
        slices = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
        if len(slices) and (empty := slices[-1] - slices[0] + 1 - len(slices)):
            return (
                f"has {empty} empty slices between others along its {name} axis, expected none: convert it from DICOM "
                "anew, slices may be lost."
            )
    return None


def _check_size(mask: np.ndarray, shown: np.ndarray, spacing: np.ndarray) -> str | None:
    """Tells a brain that is too small or too large for the whole head, and refuses what is none."""
    if not shown.any():
        return None
    volume_ml = mask.sum() * spacing.prod() / 1000
    shortest, middle, _ = sorted(np.array([span.stop - span.start for span in box_of(shown)]) * spacing)
    whole = shortest >= WHOLE_EXTENT or (middle < WHOLE_EXTENT and mask.sum() >= WHOLE_VOXELS)
    if not whole or BRAIN_ML[0] <= volume_ml <= BRAIN_ML[1]:
        return None
    sentence = (
        f"has a brain of {volume_ml:.3g} ml, expected {BRAIN_ML[0]:g} to {BRAIN_ML[1]:g} ml of a whole one; check the "
        "brain mask, whether the skull is still there, and whether the header gives the size of voxels in mm, not cm."
    )
    if not POSSIBLE_ML[0] <= volume_ml <= POSSIBLE_ML[1]:
        raise ValueError(sentence)
    return sentence


def _check_place(mask: np.ndarray, shown: np.ndarray) -> str | None:
    """Tells a brain mask that lies beside the brain."""
    beside, missed = (mask & ~shown).sum() / mask.sum(), (shown & ~mask).sum() / max(1, shown.sum())
    if beside > MOST_BACKGROUND and missed > MOST_MISSED:
        return (
            f"has a brain mask of which {beside:.0%} is background while {missed:.0%} of the scan lies outside of it, "
            "expected a mask of this scan; make it again, or set `brain_mask` to null."
        )
    return None


def _check_holes(mask: np.ndarray, shown: np.ndarray, spacing: np.ndarray) -> str | None:
    """Tells a brain mask with holes where the scan shows something."""
    box = box_of(mask)
    holes_ml = (fill_holes(mask[box]) & ~mask[box] & shown[box]).sum() * spacing.prod() / 1000
    if holes_ml > LARGEST_HOLES_ML:
        return (
            f"has a brain mask with {holes_ml:.3g} ml of holes, where nothing is marked; fill them if lesions were cut "
            "out of it."
        )
    return None


def check_levels(intensities: np.ndarray) -> str | None:
    """Tells a brain of very few intensities, and one of which far more voxels share the highest than the one below."""
    levels, voxels = np.unique(intensities, return_counts=True)
    if len(levels) < LEAST_LEVELS:
        return f"has {len(levels)} intensities in its brain, as a map of labels has; give the scan."
    part = voxels[-1] / voxels.sum()
    if part > MOST_CLIPPED and voxels[-1] > LEAST_PEAK * voxels[-2]:
        return (
            f"is clipped: {part:.1%} of the brain has its highest intensity, expected at most {MOST_CLIPPED:.0%}; what "
            "lies above is lost, export the scan again without clipping."
        )
    return None


def _check_wrapped(modality: np.ndarray, mask: np.ndarray) -> None:
    """Refuse a brain whose brightest voxels became negative, as those beyond 32,767 do in 16 bits.

    In any image the neighbors of the darkest voxels are dark too; here they are bright.
    """
    negative = mask & (modality < -0.5 * modality[mask].max())
    if np.count_nonzero(negative) < LEAST_WRAPPED:
        return
    rest = mask & ~negative
    around = modality[ndimage.binary_dilation(negative) & rest]
    if rest.any() and np.mean(around > np.quantile(modality[rest], 0.75)) > BRIGHT_AROUND:
        raise ValueError(
            f"has {np.count_nonzero(negative)} strongly negative voxels beside its brightest ones: intensities beyond "
            "what 16 bits hold were wrapped; export the scan again, with a scale or as float."
        )


def _check_fluid(intensities: np.ndarray, modality: str) -> str | None:
    """Tells a scan whose fluid is its brightest tissue, as in a T2, of a modality where it is dark."""
    low, middle, high = np.percentile(intensities, [2, 50, 95])
    if high - middle > BRIGHT_FLUID * (middle - low):
        return (
            f"is probably no {modality}: far more of the brain is much brighter than its tissue than is darker, as "
            f"fluid is in T2; give the {modality}."
        )
    return None


def check_labels(label: MetaTensor) -> str | None:
    """Tells a lesion mask of several values, all of which count; 0 is no lesion."""
    values, voxels = np.unique(np.round(label.numpy()), return_counts=True)
    sizes_ml = voxels * voxel_ml(np.asarray(label.affine))
    sizes = [f"{value:g} ({ml:.3g} ml)" for value, ml in zip(values, sizes_ml, strict=True) if value > 0]
    if len(sizes) > 1:
        return f"has a lesion mask of several values, {', '.join(sizes)}: all count, unless `label_values` says which."
    return None


def check_marked(marked_ml: float, brain_ml: float) -> str | None:
    """Tells a result that marks more of the brain than lesions take."""
    if marked_ml > MOST_MARKED * brain_ml:
        return (
            f"has {marked_ml:.3g} ml marked, {marked_ml / brain_ml:.0%} of the brain, expected at most "
            f"{MOST_MARKED:.0%}; check in `run view` whether the scan is of the right modality, and its brain mask."
        )
    return None
