"""Made lesions in healthy volumes: what an unsupervised method is tested on where no drawn lesion is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

PLACES = ("anywhere", "periventricular", "cortical", "brain_stem", "cerebellum")
LABELS = {  # of FreeSurfer
    "white": (2, 41, 25, 57),
    "cortical": (3, 42),
    "brain_stem": (16, 28, 60),
    "cerebellum": (7, 8, 46, 47),
    "ventricles": (4, 43),
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72, 30, 62, 502, 514),
}
LEAST_VOXELS = 20
LEAST_DEVIATION = 0.08  # of white matter, in parts of its median: that of real FLAIR (0.08 and 0.10 were measured)
PERIVENTRICULAR_MM = 5.0  # around a ventricle
BUMPS = 0.35  # of a lesion's surface, in parts of its radius
BORDER_MM = 2.0  # width of the soft border
TEXTURE = 0.3  # deviation of the brightness within a lesion, in parts of the contrast


class MadeLesions(NamedTuple):
    """A volume with lesions; the volume without them is not changed."""

    image: np.ndarray  # (X, Y, Z), float32
    label: np.ndarray  # (X, Y, Z), bool


def _white_matter_scale(image: np.ndarray, brain_mask: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Median and robust deviation (1.4826 MAD) of white matter.

    A volume cleaner than real ones counts as if it were real: the deviation is at least 0.08 of the median.
    """
    voxels = image[brain_mask & np.isin(labels, LABELS["white"])]
    if voxels.size < LEAST_VOXELS:
        raise ValueError(f"White matter has {voxels.size} voxels, needs {LEAST_VOXELS}: check the label map.")
    center = np.median(voxels)
    deviation = 1.4826 * np.median(np.abs(voxels - center))
    return float(center), float(max(deviation, LEAST_DEVIATION * abs(center)))


def _places(brain_mask: np.ndarray, labels: np.ndarray, place: str) -> np.ndarray:
    """Voxels, at least one, where a lesion of a kind may have its center; ``place`` is one of `PLACES`."""
    if place not in PLACES:
        raise ValueError(f"`place` must be one of {', '.join(PLACES)}, got {place!r}.")
    found = brain_mask & ~np.isin(labels, LABELS["fluid"])
    if place == "periventricular":
        outside = ~np.isin(labels, LABELS["ventricles"])
        near = ndimage.distance_transform_edt(outside) <= PERIVENTRICULAR_MM
        found &= np.isin(labels, LABELS["white"]) & near & ~outside.all()
    elif place != "anywhere":
        found &= np.isin(labels, LABELS[place])
    if not found.any():
        raise ValueError(f"No voxel for a lesion {place!r} in this brain: choose another place.")
    return found


def _blob(rng: np.random.Generator, volume_ml: float) -> np.ndarray:
    """A random ellipsoid with a bumpy surface: signed depth under it (X, Y, Z) in mm, positive within."""
    radii = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3) * np.exp(rng.normal(0, 0.25, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    reach = int(np.ceil(radii.max() * (1 + 2 * BUMPS))) + 3
    axes = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1.0)] * 3, indexing="ij"), axis=-1) @ rotation / radii
    bumps = ndimage.gaussian_filter(rng.normal(size=axes.shape[:3]), max(radii.mean() / 2.5, 0.8))
    depth = 1 - np.linalg.norm(axes, axis=-1) + BUMPS * bumps / max(bumps.std(), 1e-6)
    number = min(max(round(volume_ml * 1000), LEAST_VOXELS), depth.size - 1)
    surface = -np.partition(-depth.ravel(), number)[number]  # so that the volume is right
    return (depth - surface).astype(np.float32) * np.float32(radii.mean())


def add_lesions(
    image: np.ndarray,
    brain_mask: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    volume_ml: float = 10.0,
    number: int = 1,
    contrast: float = 2.0,
    place: Sequence[str] = ("anywhere",),
) -> MadeLesions:
    """Add lesions to a healthy volume; with the same generator state they are the same lesions.

    A lesion adds to its tissue or replaces it (the tissue's own contrast goes, as in oedema and gliosis), and
    leaves fluid outside the brain tissue alone. Lesions share the volume by lot, so some are small.

    Args:
        image: Healthy volume (X, Y, Z), 1 mm.
        brain_mask: Brain voxels (X, Y, Z), bool.
        labels: FreeSurfer's labels of the voxels (X, Y, Z).
        rng: Source of randomness.
        volume_ml: Size of all lesions together, about: what falls outside of brain tissue does not count.
        number: Of lesions.
        contrast: Brightness above white matter, in its robust deviations; negative is darker.
        place: Some of `PLACES`, from which each lesion's is drawn.

    Returns:
        The volume with lesions, and their label.

    Raises:
        ValueError: When an argument is out of its range, or a place has no voxel.
    """
    if not 0 < volume_ml <= 500:
        raise ValueError(f"`volume_ml` must be in (0, 500], got {volume_ml}; did you pass cubic millimeters?")
    if number < 1:
        raise ValueError(f"`number` of lesions must be 1 or more, got {number}.")
    center, deviation = _white_matter_scale(image, brain_mask, labels)
    candidates = {kind: np.argwhere(_places(brain_mask, labels, kind)) for kind in place}
    depth = np.full(image.shape, -100.0, dtype=np.float32)
    for volume in volume_ml * rng.dirichlet(np.full(number, 1.5)):
        spots = candidates[place[int(rng.integers(len(place)))]]
        _put(depth, _blob(rng, volume), spots[rng.integers(len(spots))])
    depth = np.where(_places(brain_mask, labels, "anywhere"), depth, -100)
    weight = ndimage.gaussian_filter(np.clip(depth / BORDER_MM + 0.5, 0, 1), 0.5) * brain_mask
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 2.0, truncate=3)
    added = contrast * deviation * np.clip(1 + TEXTURE * (grain / max(grain.std(), 1e-6)), 0.4, 1.8)
    replaced = rng.uniform(0.2, 0.8)
    own_grain = image - ndimage.gaussian_filter(image, 1.5, truncate=3)  # so that a lesion does not look painted
    lesion = replaced * (center + added + 0.5 * own_grain) + (1 - replaced) * (image + added)
    changed = image + weight * (lesion - image)
    return MadeLesions(changed.astype(np.float32), (weight > 0.5) & brain_mask)


def _put(depth: np.ndarray, solid: np.ndarray, spot: np.ndarray) -> None:
    """Unite a lesion with those there are, its middle at ``spot``; what is beyond the grid is cut off."""
    target, source = [], []
    for place, size, length in zip(spot, depth.shape, solid.shape, strict=True):
        start = int(place) - length // 2
        target.append(slice(max(start, 0), min(start + length, size)))
        source.append(slice(max(-start, 0), max(-start, 0) + target[-1].stop - target[-1].start))
    part = depth[tuple(target)]
    np.maximum(part, solid[tuple(source)], out=part)
