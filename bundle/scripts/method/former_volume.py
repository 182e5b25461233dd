"""Lesions in whole volumes: one network sees them slice by slice in all three planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from .threshold_rule import slope_threshold

PIXEL_SIZE = 1.25  # mm, of the working grid in every direction
LOWEST, HIGHEST = -6.0, 8.0  # robust deviations of the brain that the network sees
UNIT = 3.0  # robust deviations that are 1 for the network
BACKGROUND = -2.0  # what the network sees outside the brain
# For each plane the axis across it, and those of rows and columns: the network sees axial slices as (x, y), coronal
# ones as (x, z) and sagittal ones as (z, y).
PLANES = {"axial": (2, (0, 1)), "coronal": (1, (0, 2)), "sagittal": (0, (2, 1))}
MULTIPLE = 16  # pixels: the network halves slices up to four times
MARGIN = 4  # pixels around the brain of a slice
PRIOR = -1.0  # added to the logits: a brain holds lesions less often than a slice of the training does
UNLIKELY = -6.0  # logit: a lesion less likely than that is none
LOW, HIGH = -0.5, 0.5  # logits: what is marked, and what a marked component holds somewhere
CERTAIN = 0.5  # logit above which a voxel is taken for lesion for certain
COMMON_LOAD, LARGEST_SHIFT = 0.001, 2.0  # certain part of a brain from which on logits rise; by how much at most
MIRROR_WEIGHT, MIRROR_SIGMA = 0.2, 2.5  # part of the mirrored score that is taken off; its smoothing in grid pixels
SAMPLE = 200_000  # voxels that median and deviation are measured on
FULL_SIZE = 60.0  # mm: a brain that is shorter along an axis is a slab of slices


class VolumeResult(NamedTuple):
    """What `segment_volume` finds.

    Attributes:
        mask: Anomalous voxels (1, X, Y, Z), bool.
        probability: Of lesion (1, X, Y, Z), 0 outside the brain.
        reconstruction: Healthy volume (M, X, Y, Z), in the scale of the input; the input itself outside the brain.
    """

    mask: Tensor
    probability: Tensor
    reconstruction: Tensor


def is_whole(brain_mask: Tensor, spacing: Sequence[float]) -> bool:
    """Whether a volume (X, Y, Z) shows a brain in all three directions, and not a slab or a slice of it."""
    for axis, step in enumerate(spacing):
        shown = _planes_with(brain_mask, axis)
        if len(shown) == 0 or float(shown[-1] - shown[0] + 1) * float(step) < FULL_SIZE:
            return False
    return True


def _planes_with(brain_mask: Tensor, axis: int) -> Tensor:
    """The numbers of the planes across an axis that show brain."""
    others = [other for other in range(3) if other != axis]
    return brain_mask.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]


def lowest_probability(threshold_scale: float) -> float:
    """The probability of lesion from which on a voxel may be marked; ``threshold_scale`` is a factor on the odds."""
    odds = math.exp(LOW) * threshold_scale
    return odds / (1 + odds)


def to_network(image: Tensor, brain_mask: Tensor) -> Tensor:
    """Give slices or volumes in deviations of the brain the range and the background that the network sees."""
    return torch.where(brain_mask, image.clamp(LOWEST, HIGHEST) / UNIT, BACKGROUND)


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

    Args:
        number: Voxels of the row.
        spacing: Their size in mm.
        size: Voxels of the result.
        pixel_size: Their size in mm.
        center: Where the middle of the result lies, in mm from the middle of the first voxel.
    """
    place = center + (torch.arange(size) - (size - 1) / 2) * pixel_size
    width = max(spacing, pixel_size)
    distance = (place[:, None] - spacing * torch.arange(number)).abs()
    weight = (1 - distance / width).clamp(min=0) * (spacing / width)
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=0.5)  # less lies beyond the row


class Grid:
    """A grid of cubic voxels around a brain, and the way there and back.

    Args:
        brain_mask: (X, Y, Z), bool, not empty.
        spacing: Of its voxels in mm.
        pixel_size: Of the grid's voxels in mm.

    Attributes:
        box: Where the brain is in the volume; what lies around it is neither read nor written.
    """

    def __init__(self, brain_mask: Tensor, spacing: Sequence[float], pixel_size: float = PIXEL_SIZE):
        self.forward, self.backward, self.box = [], [], []
        for axis, step in enumerate(map(float, spacing)):
            shown = _planes_with(brain_mask, axis)
            box = slice(int(shown[0]), int(shown[-1]) + 1)
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


def predict(network: nn.Module, image: Tensor, brain_mask: Tensor, batch_size: int) -> Tensor:
    """Ask the network slice by slice in all planes, with the whole brain hidden, and average; left and right alike.

    Args:
        network: Takes slices and what is hidden, (N, M + 1, H, W); gives mean, log-variance and logit of lesion.
        image: Volume as the network sees it, (M, X, Y, Z).
        brain_mask: (X, Y, Z), bool.
        batch_size: Slices at once.

    Returns:
        Predicted mean of the M modalities and logit of lesion, (M + 1, X, Y, Z).
    """
    modalities = len(image)
    volume = torch.cat([image, brain_mask[None].to(image.dtype)])
    total = torch.zeros_like(volume)
    for axis, order in PLANES.values():
        slices, result = (each.permute(1 + axis, 0, *(1 + other for other in order)) for each in (volume, total))
        inside = brain_mask.permute(axis, *order)
        for part in inside.flatten(1).any(dim=1).nonzero()[:, 0].split(batch_size):
            rows, columns = _span(inside[part].any(dim=0).any(dim=1)), _span(inside[part].any(dim=0).any(dim=0))
            window = (part, slice(None), rows, columns)
            output = _ask(network, slices[window])
            if order[0] == 0:  # left and right are not told apart
                output = (output + _ask(network, slices[window].flip(2)).flip(2)) / 2
            result[window] += torch.cat([output[:, :modalities], output[:, -1:]], dim=1)
    return total / len(PLANES)


def _ask(network: nn.Module, slices: Tensor) -> Tensor:
    return network(slices.contiguous(memory_format=torch.channels_last)).float()


def _span(shown: Tensor) -> slice:
    """The part of a row, a multiple of `MULTIPLE` long, around what is shown, (n,) bool."""
    places = shown.nonzero()[:, 0]
    first, last = max(0, int(places[0]) - MARGIN), min(len(shown), int(places[-1]) + 1 + MARGIN)
    length = math.ceil((last - first) / MULTIPLE) * MULTIPLE
    first = max(0, min(first, len(shown) - length))
    return slice(first, first + length)


def take_off_mirrored(score: Tensor, brain_mask: Tensor) -> Tensor:
    """Take off a part of the smoothed score of the mirrored place: what is unusual on both sides is rarely a lesion.

    Args:
        score: (X, Y, Z), at least 0; X runs from left to right.
        brain_mask: (X, Y, Z), bool.
    """
    both = [
        torch.from_numpy(ndimage.gaussian_filter(each.flip(0).cpu().float().numpy(), MIRROR_SIGMA, truncate=3))
        for each in (score, brain_mask)
    ]
    mirrored = (both[0] / both[1].clamp(min=0.05)).to(score.device)
    return (score - MIRROR_WEIGHT * mirrored).clamp(min=0) * brain_mask


def prior_shift(logit: Tensor) -> float:
    """By how much the logits of a subject rise: a brain where much is certainly lesion has more that is less certain.

    A classifier's odds are multiplied by the odds of what it is to find (Saerens et al. 2002); the part of the brain
    that is certain stands for these, beside `COMMON_LOAD`.

    Args:
        logit: Of lesion, all voxels of the brain, (V,).

    Returns:
        From 0 to `LARGEST_SHIFT`.
    """
    certain = float((logit > CERTAIN).float().mean())
    return min(max(math.log(max(certain, 1e-9) / COMMON_LOAD), 0.0), LARGEST_SHIFT)


def hysteresis(score: Tensor, low: float, high: float) -> Tensor:
    """Components (26 neighbors) of voxels above ``low`` that hold one above ``high``, (X, Y, Z) bool."""
    values = score.cpu().numpy()
    labels, _ = ndimage.label(values > low, np.ones((3, 3, 3)))
    kept = np.zeros(int(labels.max()) + 1, dtype=bool)
    kept[labels[values > high]] = True
    kept[0] = False
    return torch.from_numpy(kept[labels]).to(score.device)


@torch.no_grad()
def segment_volume(
    network: nn.Module,
    image: Tensor,
    brain_mask: Tensor,
    spacing: Sequence[float],
    threshold_scale: float = 1.0,
    batch_size: int = 32,
    threshold_rule: str = "prior",
) -> VolumeResult:
    """Find the lesions of a whole volume.

    The volume is standardized by the median and deviation of its brain, the network says in three planes where it sees
    lesions, and the subject tells by how much its logits rise, so that one threshold fits all: by how much is certainly
    lesion, see `prior_shift`, or so that the place that `slope_threshold` finds comes to `LOW`.

    Args:
        network: The lesion network, see `predict`.
        image: Volume (M, X, Y, Z) in RAS order, any linear scale.
        brain_mask: (1, X, Y, Z), bool, not empty.
        spacing: Of its voxels in mm.
        threshold_scale: Factor on the odds that a marked voxel needs; 1 marks areas above 0.38 that reach 0.62, more
            marks less.
        batch_size: Slices that the network sees at once.
        threshold_rule: One of `THRESHOLD_RULES`.

    Raises:
        ValueError: When the brain mask is no brain's.
    """
    inside = brain_mask[0]
    grid = Grid(inside, spacing)
    share = grid.resample(brain_mask.to(image.dtype))
    brain = share[0] > 0.5
    if not brain.any():
        raise ValueError(f"has a brain that vanishes on voxels of {PIXEL_SIZE:g} mm: check the brain mask.")
    small = grid.resample(image * brain_mask) / share.clamp(min=0.05) * brain
    median, deviation = robust_scale(small, brain)
    prediction = predict(network, to_network((small - median) / deviation, brain), brain, batch_size)
    logit, healthy = prediction[-1] + PRIOR, prediction[:-1] * UNIT * deviation + median
    score = take_off_mirrored((logit.clamp(min=UNLIKELY) - UNLIKELY) * brain, brain)
    if threshold_rule == "slope":
        shift = LOW - slope_threshold(score[brain] + UNLIKELY, LOW)
    else:
        shift = prior_shift(logit[brain])
    score = score + shift * brain
    low, high = (limit - UNLIKELY + math.log(threshold_scale) for limit in (LOW, HIGH))
    kept = torch.nn.functional.max_pool3d(hysteresis(score, low, high)[None].float(), 3, 1, 1)
    restored = grid.restore(torch.cat([score[None], kept, healthy]))
    score, kept, healthy = restored[:1], restored[1:2], restored[2:]
    box = (slice(None), *grid.box)
    shown = brain_mask[box]
    result = VolumeResult(torch.zeros_like(brain_mask), torch.zeros_like(image[:1]), image.clone())
    result.mask[box] = shown & (kept > 0.5) & (score > low)
    result.probability[box] = torch.sigmoid(score + UNLIKELY) * shown
    result.reconstruction[box] = torch.where(shown, healthy, image[box])
    return result
