"""Lesions in whole volumes: one network sees them slice by slice in all three planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .lesion_network import PIXEL_SIZE, UNLIKELY, LesionNetwork

# For each plane the axis across it, and those of rows and columns: the network sees axial slices as (x, y), coronal
# ones as (x, z) and sagittal ones as (z, y).
PLANES = {"axial": (2, (0, 1)), "coronal": (1, (0, 2)), "sagittal": (0, (2, 1))}
MULTIPLE = 16  # pixels: the network halves slices up to four times
MARGIN = 4  # pixels around the brain of a slice
SAMPLE = 200_000  # voxels that median and deviation are measured on
SHORTEST_SIDE = 40.0  # mm: planes whose slices show less of a brain, or of a scan, along one axis are not used


class VolumeResult(NamedTuple):
    """What `segment_volume` finds.

    Attributes:
        mask: Anomalous voxels (1, X, Y, Z), bool.
        probability: Of lesion (1, X, Y, Z), 0 outside the brain.
        reconstruction: Healthy volume (M, X, Y, Z), in the scale of the input; the input itself outside the brain.
        threshold: The lowest probability that is marked.
    """

    mask: Tensor
    probability: Tensor
    reconstruction: Tensor
    threshold: float


def shown_planes(brain_mask: Tensor, spacing: Sequence[float]) -> list[str]:
    """The planes whose slices show enough of a brain (X, Y, Z): one of a slice or a thin slab, else all three.

    Where there is none, it is that across the shortest axis.
    """
    lengths = []
    for axis, step in enumerate(spacing):
        shown = _planes_with(brain_mask, axis)
        lengths.append(float(shown[-1] - shown[0] + 1) * float(step))
    whole = [name for name, (_, order) in PLANES.items() if min(lengths[axis] for axis in order) >= SHORTEST_SIDE]
    return whole or [min(PLANES, key=lambda name: lengths[PLANES[name][0]])]


def _planes_with(brain_mask: Tensor, axis: int) -> Tensor:
    """The numbers of the planes across an axis that show brain."""
    return brain_mask.any(dim=[other for other in range(3) if other != axis]).nonzero()[:, 0]


def robust_scale(image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Median and robust deviation (1.4826 times the median absolute deviation) of a brain.

    Args:
        image: Volume (M, X, Y, Z).
        brain_mask: (X, Y, Z), bool, not empty.

    Returns:
        Both (M, 1, 1, 1).

    Raises:
        ValueError: When half of the brain or more has one intensity, as where a mask takes in background.
    """
    values = image[:, brain_mask]
    values = values[:, :: max(1, values.shape[1] // SAMPLE)]
    median = values.median(dim=1, keepdim=True).values
    deviation = 1.4826 * (values - median).abs().median(dim=1).values
    if not (deviation > 1e-6).all():
        raise ValueError("has one intensity in half of its brain: check the brain mask, or exclude the case.")
    return median[..., None, None], deviation[:, None, None, None]


def resampling_matrix(number: int, spacing: float, size: int, pixel_size: float, center: float) -> Tensor:
    """Weights that resample a row of voxels, (size, number): a triangle as wide as the larger of both voxels.

    Beyond the row lie voxels of 0, so that it does not matter where a volume ends.

    Args:
        number: Voxels of the row.
        spacing: Their size in mm.
        size: Voxels of the result.
        pixel_size: Their size in mm.
        center: Where the middle of the result lies, in mm from the middle of the first voxel.
    """
    place = center + (torch.arange(size) - (size - 1) / 2) * pixel_size
    width = max(spacing, pixel_size)
    beyond = math.ceil(width / spacing)
    distance = (place[:, None] - spacing * torch.arange(-beyond, number + beyond)).abs()
    weight = (1 - distance / width).clamp(min=0) * (spacing / width)
    return (weight / weight.sum(dim=1, keepdim=True).clamp(min=0.5))[:, beyond : beyond + number]


class Grid:
    """A grid of cubic voxels around a brain, and the way there and back.

    Args:
        brain_mask: (X, Y, Z), bool, not empty.
        spacing: Of its voxels in mm.
        pixel_size: Of the grid's voxels in mm.
        kept_axis: The axis whose voxels stay as they are, as across the slices of a slab; None: none.

    Attributes:
        box: Where the brain is in the volume; what lies around it is neither read nor written.
        voxel_size: Of the grid in mm.
    """

    def __init__(
        self,
        brain_mask: Tensor,
        spacing: Sequence[float],
        pixel_size: float = PIXEL_SIZE,
        kept_axis: int | None = None,
    ):
        self.forward, self.backward, self.box = [], [], []
        self.voxel_size = [float(step) if axis == kept_axis else pixel_size for axis, step in enumerate(spacing)]
        for axis, step in enumerate(map(float, spacing)):
            shown = _planes_with(brain_mask, axis)
            box = slice(int(shown[0]), int(shown[-1]) + 1)
            if axis == kept_axis:
                there = back = torch.eye(box.stop - box.start)
            else:
                first, last = float(shown[0]) * step, float(shown[-1]) * step
                size = math.ceil(((last - first + step) / pixel_size + 2) / MULTIPLE) * MULTIPLE
                number, center = brain_mask.shape[axis], (first + last) / 2
                start = center - (size - 1) / 2 * pixel_size
                there = resampling_matrix(number, step, size, pixel_size, center)[:, box]
                back = resampling_matrix(size, pixel_size, number, step, (number - 1) / 2 * step - start)[box]
            self.forward.append(there.to(brain_mask.device))
            self.backward.append(back.to(brain_mask.device))
            self.box.append(box)

    def resample(self, volume: Tensor) -> Tensor:
        """Bring a volume (C, X, Y, Z), 0 outside the brain, to the grid."""
        return _along_axes(volume[(slice(None), *self.box)], self.forward)

    def restore(self, volume: Tensor) -> Tensor:
        """Bring a volume (C, X', Y', Z') of the grid back to the box of the brain."""
        return _along_axes(volume, self.backward)


def _along_axes(volume: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each axis of a volume (C, X, Y, Z) by its matrix."""
    for matrix in matrices:  # the first axis goes to the end, so that after three steps all are in order again
        volume = torch.einsum("cxyz,ix->cyzi", volume, matrix.to(volume.dtype))
    return volume


def predict(
    model: LesionNetwork, image: Tensor, brain_mask: Tensor, planes: Sequence[str] = tuple(PLANES), batch_size: int = 32
) -> Tensor:
    """Ask the network slice by slice in all planes and average; left and right alike.

    Args:
        model: The lesion network.
        image: Volume (M, X, Y, Z) in robust deviations from the median of its brain.
        brain_mask: (X, Y, Z), bool.
        planes: Names out of `PLANES`.
        batch_size: Slices at once.

    Returns:
        Predicted healthy volume, in deviations too, and logit of lesion, (M + 1, X, Y, Z).
    """
    volume = torch.cat([image, brain_mask[None].to(image.dtype)])
    total = torch.zeros_like(volume)
    for axis, order in (PLANES[name] for name in planes):
        slices, result = (each.permute(1 + axis, 0, *(1 + other for other in order)) for each in (volume, total))
        inside = brain_mask.permute(axis, *order)
        for part in inside.flatten(1).any(dim=1).nonzero()[:, 0].split(batch_size):
            rows, columns = _span(inside[part].any(dim=0).any(dim=1)), _span(inside[part].any(dim=0).any(dim=0))
            shown = slices[part, :, rows, columns]
            flip = order[0] == 0  # rows run from left to right
            result[part, :, rows, columns] += model.predict(shown[:, :-1], shown[:, -1:] > 0.5, flip)
    return total / len(planes)


def _span(shown: Tensor) -> slice:
    """The part of a row, a multiple of `MULTIPLE` long, around what is shown, (n,) bool."""
    places = shown.nonzero()[:, 0]
    first, last = max(0, int(places[0]) - MARGIN), min(len(shown), int(places[-1]) + 1 + MARGIN)
    length = math.ceil((last - first) / MULTIPLE) * MULTIPLE
    first = max(0, min(first, len(shown) - length))
    return slice(first, first + length)


def take_off_mirrored(score: Tensor, brain_mask: Tensor, weight: float, sigmas: Sequence[float]) -> Tensor:
    """Take off a part of the smoothed score of the mirrored place: what is unusual on both sides is rarely a lesion.

    Args:
        score: (X, Y, Z), at least 0; X runs from left to right.
        brain_mask: (X, Y, Z), bool.
        weight: Of the mirrored score.
        sigmas: Of its smoothing along each axis in voxels.
    """
    both = [
        torch.from_numpy(ndimage.gaussian_filter(each.flip(0).cpu().float().numpy(), sigmas, truncate=3))
        for each in (score, brain_mask)
    ]
    mirrored = (both[0] / both[1].clamp(min=0.05)).to(score.device)
    return (score - weight * mirrored).clamp(min=0) * brain_mask


def label_shifts(logit: Tensor, prior: float, largest: float, most_iterations: int = 20) -> list[float]:
    """By how much the logits of a subject rise or fall with what it has of lesion, iteration by iteration.

    A classifier's odds are multiplied by the odds of what it is to find, and what it finds tells these (Saerens et al.
    2002): the mask of what is likelier lesion than not gives the lesion's part of the brain, this the next mask, until
    it stands. It starts with a brain that has least.

    Args:
        logit: Of lesion, all voxels of the brain, (V,).
        prior: Part of a brain that is lesion where logits stay as they are, in (0, 1).
        largest: By how much logits rise or fall at most; 0 leaves them as they are.
        most_iterations: No more than these.

    Returns:
        The shift of each iteration, the last one that which stands.
    """
    shifts = [-largest]
    while len(shifts) <= most_iterations:
        fraction = float((logit + shifts[-1] > 0).float().mean())
        shift = min(max(math.log(max(fraction, 1e-9) / prior), -largest), largest)
        if abs(shift - shifts[-1]) < 0.01:
            break
        shifts.append(shift)
    return shifts


def hysteresis(score: Tensor, low: float, high: float) -> Tensor:
    """Components (26 neighbors) of voxels above ``low`` that hold one above ``high``, (X, Y, Z) bool."""
    values = score.cpu().numpy()
    kept = ndimage.binary_propagation(values > max(low, high), np.ones((3, 3, 3)), values > low)
    return torch.from_numpy(kept).to(score.device)


@torch.no_grad()
def segment_volume(
    model: LesionNetwork,
    image: Tensor,
    brain_mask: Tensor,
    spacing: Sequence[float],
    threshold_scale: float = 1.0,
    batch_size: int = 32,
) -> VolumeResult:
    """Find the lesions of a whole volume, a slab or a slice.

    The volume is standardized by the median and deviation of its brain, the network says in all planes that show the
    brain whole where it sees lesions, and the mask itself tells by how much the logits of this subject rise or fall,
    see `label_shifts`.

    Args:
        model: The lesion network with its thresholds.
        image: Volume (M, X, Y, Z) in RAS order, any linear scale.
        brain_mask: (1, X, Y, Z), bool, not empty.
        spacing: Of its voxels in mm.
        threshold_scale: Factor on the odds that a marked voxel needs; more marks less.
        batch_size: Slices that the network sees at once.

    Raises:
        ValueError: When the shapes do not fit, or the brain mask is not bool, or no brain's.
    """
    if image.ndim != 4 or brain_mask.shape != image[:1].shape or brain_mask.dtype != torch.bool:
        raise ValueError(
            "`image` must have shape (M, X, Y, Z) and `brain_mask` shape (1, X, Y, Z) and type bool, got "
            f"{list(image.shape)} and {list(brain_mask.shape)} of {brain_mask.dtype}."
        )
    grid, brain, prediction = see_volume(model, image, brain_mask, spacing, batch_size)
    score, low, high = decide(model, prediction[-1], brain, grid.voxel_size, threshold_scale)
    box = (slice(None), *grid.box)
    shown = brain_mask[box]
    threshold = 1 / (1 + math.exp(-(low + UNLIKELY)))
    result = VolumeResult(torch.zeros_like(brain_mask), torch.zeros_like(image[:1]), image.clone(), threshold)
    result.mask[box] = mark(grid, score, low, high) & shown
    result.probability[box] = torch.sigmoid(grid.restore(score[None]) + UNLIKELY) * shown
    result.reconstruction[box] = torch.where(shown, grid.restore(prediction[:-1]), image[box])
    return result


def see_volume(
    model: LesionNetwork, image: Tensor, brain_mask: Tensor, spacing: Sequence[float], batch_size: int = 32
) -> tuple[Grid, Tensor, Tensor]:
    """Show a volume to the network: give the grid, its brain (X', Y', Z'), and the prediction (M + 1, X', Y', Z').

    The healthy volume is in the scale of the input; arguments and errors are those of `segment_volume`.
    """
    inside = brain_mask[0]
    planes = shown_planes(inside, spacing)
    grid = Grid(inside, spacing, model.pixel_size, None if len(planes) > 1 else PLANES[planes[0]][0])
    share = grid.resample(brain_mask.to(image.dtype))
    brain = share[0] > 0.5
    if not brain.any():
        raise ValueError(f"has a brain that vanishes on voxels of {model.pixel_size:g} mm: check the brain mask.")
    small = grid.resample(image * brain_mask) / share.clamp(min=0.05) * brain
    median, deviation = robust_scale(small, brain)
    prediction = predict(model, (small - median) / deviation, brain, planes, batch_size)
    return grid, brain, torch.cat([prediction[:-1] * deviation + median, prediction[-1:]])


def mark(grid: Grid, score: Tensor, low: float, high: float) -> Tensor:
    """Bring the mask of scores of the grid back to the box of the brain, (1, X, Y, Z), bool."""
    kept = torch.nn.functional.max_pool3d(hysteresis(score, low, high)[None].float(), 3, 1, 1)
    return (grid.restore(kept) > 0.5) & (grid.restore(score[None]) > low)


def decide(
    model: LesionNetwork, logit: Tensor, brain: Tensor, voxel_size: Sequence[float], threshold_scale: float = 1.0
) -> tuple[Tensor, float, float]:
    """Turn logits (X, Y, Z) into scores, which are 0 where a lesion is unlikely, and their two thresholds."""
    single = min(logit.shape) == 1
    weight = model.slice_mirror_weight if single else model.mirror_weight
    sigmas = [model.mirror_sigma * model.pixel_size / size for size in voxel_size]
    score = take_off_mirrored((logit - UNLIKELY).clamp(min=0) * brain, brain, weight, sigmas)
    if not single:
        shift = label_shifts(score[brain] + UNLIKELY, model.prior, model.largest_shift)[-1]
        score = (score + shift).clamp(min=0) * brain
    thresholds = (
        (model.slice_low_threshold, model.slice_high_threshold)
        if single
        else (model.low_threshold, model.high_threshold)
    )
    low, high = (float(threshold) - UNLIKELY + math.log(threshold_scale) for threshold in thresholds)
    return score, low, high
