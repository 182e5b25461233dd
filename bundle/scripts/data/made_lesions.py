"""Made lesions in healthy volumes: what an unsupervised method is tested on where no drawn lesion is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .morphology import box_of

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
FLATNESS = 0.8  # height of a lesion blown up from a slice, in parts of its depth in the plane
LEAST_DEVIATION = 0.08  # of white matter, in parts of its median: that of real FLAIR (0.08 and 0.10 were measured)
RIM_MM = 5.0  # around a ventricle that is periventricular


class MadeLesions(NamedTuple):
    """A volume with lesions; the volume without them is not changed."""

    image: np.ndarray  # (X, Y, Z), float32
    label: np.ndarray  # (X, Y, Z), bool
    weight: np.ndarray  # (X, Y, Z), 0 to 1: how much of a voxel is lesion


def white_matter_scale(
    image: np.ndarray, brain_mask: np.ndarray, labels: np.ndarray | None = None
) -> tuple[float, float]:
    """Median and robust deviation (1.4826 MAD) of white matter, or of the brain where there is no label map.

    A volume cleaner than real ones counts as if it were real: the deviation is at least 0.08 of the median.

    Args:
        image: Volume (X, Y, Z).
        brain_mask: Brain voxels (X, Y, Z), bool.
        labels: FreeSurfer's labels (X, Y, Z).

    Raises:
        ValueError: When there is next to no white matter.
    """
    voxels = image[brain_mask & np.isin(labels, LABELS["white"])] if labels is not None else image[brain_mask]
    if voxels.size < LEAST_VOXELS:
        raise ValueError(f"White matter has {voxels.size} voxels, needs {LEAST_VOXELS}: check the label map.")
    center = np.median(voxels)
    deviation = 1.4826 * np.median(np.abs(voxels - center))
    return float(center), float(max(deviation, LEAST_DEVIATION * abs(center)))


def places(
    brain_mask: np.ndarray, place: str, labels: np.ndarray | None = None, image: np.ndarray | None = None
) -> np.ndarray:
    """Voxels where a lesion of a kind may have its center.

    Args:
        brain_mask: Brain voxels (X, Y, Z), bool.
        place: One of `PLACES`.
        labels: FreeSurfer's labels (X, Y, Z). Without them ``image`` tells fluid (its darkest parts, deep in the
            brain, are the ventricles), and only "anywhere", "periventricular" and "cortical" are known.
        image: The volume (X, Y, Z); FLAIR.

    Returns:
        (X, Y, Z), bool, not empty.

    Raises:
        ValueError: When ``place`` is unknown, needs a label map, or has no voxel.
    """
    if place not in PLACES:
        raise ValueError(f"`place` must be one of {', '.join(PLACES)}, got {place!r}.")
    if labels is not None:
        found = _places_of_labels(brain_mask, place, labels)
    elif image is not None and place not in ("brain_stem", "cerebellum"):
        found = _places_of_image(brain_mask, place, image)
    else:
        raise ValueError(f"A lesion {place!r} needs a label map, or an image for other places: give `labels`.")
    if not found.any():
        raise ValueError(f"No voxel for a lesion {place!r} in this brain: choose another place.")
    return found


def _places_of_labels(brain_mask: np.ndarray, place: str, labels: np.ndarray) -> np.ndarray:
    tissue = brain_mask & ~np.isin(labels, LABELS["fluid"])
    if place == "anywhere":
        return tissue
    if place == "periventricular":
        ventricles = np.isin(labels, LABELS["ventricles"])
        return np.isin(labels, LABELS["white"]) & tissue & _within(ventricles, RIM_MM)
    return tissue & np.isin(labels, LABELS[place])


def _places_of_image(brain_mask: np.ndarray, place: str, image: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.0)
    fluid = brain_mask & (smooth < 0.55 * np.median(image[brain_mask]))
    tissue = brain_mask & ~fluid
    if place == "anywhere":
        return tissue
    depth = ndimage.distance_transform_edt(brain_mask)
    if place == "cortical":
        return tissue & (depth > 2) & (depth < 10)
    return tissue & _within(fluid & (depth > 25), RIM_MM)


def _within(region: np.ndarray, distance: float) -> np.ndarray:
    if not region.any():
        return np.zeros_like(region)
    return ndimage.distance_transform_edt(~region) <= distance


def blob(rng: np.random.Generator, volume_ml: float, roughness: float = 0.35) -> np.ndarray:
    """A random smooth blob: an ellipsoid with a bumpy surface.

    Args:
        rng: Source of randomness.
        volume_ml: Its size in milliliters; a voxel is 1 cubic millimeter.
        roughness: Height of the bumps, in parts of the radius; 0 is an ellipsoid.

    Returns:
        Signed depth under its surface (X, Y, Z) in mm, float32: positive within.
    """
    radii = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3) * np.exp(rng.normal(0, 0.25, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    reach = int(np.ceil(radii.max() * (1 + 2 * roughness))) + 3
    axes = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1.0)] * 3, indexing="ij"), axis=-1) @ rotation / radii
    bumps = ndimage.gaussian_filter(rng.normal(size=axes.shape[:3]), max(radii.mean() / 2.5, 0.8))
    depth = 1 - np.linalg.norm(axes, axis=-1) + roughness * bumps / max(bumps.std(), 1e-6)
    return _sized(depth, volume_ml) * np.float32(radii.mean())


def inflated(rng: np.random.Generator, mask: np.ndarray, volume_ml: float) -> np.ndarray:
    """Blow a drawn lesion of one slice up to three dimensions: as high as it is deep in the plane.

    Args:
        rng: Source of randomness: the plane it lies in and its flip.
        mask: Lesion pixels (H, W), bool, 1 mm.
        volume_ml: Wanted size; the mask is scaled to it.

    Returns:
        Signed depth under its surface (X, Y, Z) in mm, float32: positive within.

    Raises:
        ValueError: When the mask is empty.
    """
    if not mask.any():
        raise ValueError("`mask` of a drawn lesion has no pixel: choose a slice with lesion.")
    part = np.pad(mask[box_of(mask)], 2)
    inside = ndimage.distance_transform_edt(part)
    height = FLATNESS * np.sqrt(inside * (2 * inside.max() - inside))  # of a ball, where the mask is a disc
    factor = (volume_ml * 1000 / (2 * height.sum())) ** (1 / 3)
    height = np.pad(ndimage.zoom(height, factor, order=1) * factor, 4)
    reach = int(np.ceil(height.max())) + 4
    solid = np.abs(np.arange(-reach, reach + 1)) < height[..., None]
    depth = ndimage.distance_transform_edt(solid) - ndimage.distance_transform_edt(~solid)
    depth = ndimage.gaussian_filter(depth.astype(np.float32), 0.7).transpose(rng.permutation(3))
    return _sized(np.flip(depth, axis=tuple(axis for axis in range(3) if rng.uniform() < 0.5)), volume_ml)


def _sized(depth: np.ndarray, volume_ml: float) -> np.ndarray:
    """Shift the surface so that the volume is right."""
    number = min(max(round(volume_ml * 1000), LEAST_VOXELS), depth.size - 1)
    level = -np.partition(-depth.ravel(), number)[number]
    return (depth - level).astype(np.float32)


def lesion_weight(depth: np.ndarray, rim_mm: float) -> np.ndarray:
    """Part of a voxel that is lesion, from its depth under the surface: 0.5 at the surface, soft over ``rim_mm``."""
    return np.clip(depth / max(rim_mm, 0.5) + 0.5, 0, 1)


def add_lesions(
    image: np.ndarray,
    brain_mask: np.ndarray,
    rng: np.random.Generator,
    volume_ml: float = 10.0,
    number: int = 1,
    contrast: float = 2.0,
    place: str | Sequence[str] = "anywhere",
    labels: np.ndarray | None = None,
    shapes: Sequence[np.ndarray] = (),
    rim_mm: float = 2.0,
    texture: float = 0.3,
    fluid_fraction: float = 0.0,
    scale: tuple[float, float] | None = None,
) -> MadeLesions:
    """Add lesions to a healthy volume; with the same generator state they are the same lesions.

    A lesion adds to its tissue or replaces it (the tissue's own contrast goes, as in oedema and gliosis), and
    leaves fluid outside the brain tissue alone. Lesions share the volume by lot, so some are small.

    Args:
        image: Healthy volume (X, Y, Z), 1 mm; a slice is (X, Y, 1).
        brain_mask: Brain voxels (X, Y, Z), bool.
        rng: Source of randomness.
        volume_ml: Size of all lesions together, about: what falls outside of brain tissue does not count.
        number: Of lesions.
        contrast: Brightness above white matter, in its deviations (`white_matter_scale`, or ``scale``); negative is
            darker.
        place: One of `PLACES`, or several to draw from.
        labels: FreeSurfer's labels of the voxels (X, Y, Z).
        shapes: Lesion masks (H, W) of drawn lesions, used for half of the lesions; none: blobs alone.
        rim_mm: Width of the soft rim.
        texture: Deviation of the brightness within a lesion, in parts of the contrast.
        fluid_fraction: Part of the largest lesion that is a cavity as dark as fluid, in [0, 0.5].
        scale: White matter's center and deviation; None: measured.

    Returns:
        The volume with lesions, their label, and their weight.

    Raises:
        ValueError: When an argument is out of its range, or a place has no voxel.
    """
    _check(image, brain_mask, volume_ml, number, rim_mm, fluid_fraction)
    center, deviation = scale or white_matter_scale(image, brain_mask, labels)
    kinds = [place] if isinstance(place, str) else list(place)
    candidates = {kind: np.argwhere(places(brain_mask, kind, labels, image)) for kind in kinds}
    tissue = _places_of_labels(brain_mask, "anywhere", labels) if labels is not None else brain_mask
    depth = np.full(image.shape, -100.0, dtype=np.float32)
    for volume in volume_ml * rng.dirichlet(np.full(number, 1.5)):
        spots = candidates[kinds[rng.integers(len(kinds))]]
        flat = image.shape[2] == 1
        _put(depth, _shape(rng, volume, shapes, flat), spots[rng.integers(len(spots))], flat)
    depth = np.where(tissue, depth, -100)
    weight = ndimage.gaussian_filter(lesion_weight(depth, rim_mm), 0.5) * brain_mask
    uneven = np.clip(1 + texture * _grain(rng, image.shape), 0.4, 1.8)
    lesion = _lesion_tissue(image, contrast * deviation * uneven, rng.uniform(0.2, 0.8), center)
    if fluid_fraction > 0:
        lesion = _with_cavity(lesion, image, depth, fluid_fraction, center)
    changed = image + weight * (lesion - image)
    return MadeLesions(changed.astype(np.float32), (weight > 0.5) & brain_mask, weight.astype(np.float32))


def _lesion_tissue(image: np.ndarray, added: np.ndarray, replaced: float, center: float) -> np.ndarray:
    """A lesion is brighter by ``added``: than white matter by the part ``replaced``, than the tissue itself else."""
    return replaced * (center + added + 0.5 * _residual(image)) + (1 - replaced) * (image + added)


def _with_cavity(
    lesion: np.ndarray, image: np.ndarray, depth: np.ndarray, fluid_fraction: float, center: float
) -> np.ndarray:
    """Lesion tissue with a cavity, as dark as fluid, where it is deepest."""
    level = np.quantile(depth[depth > 0], 1 - fluid_fraction) if (depth > 0).any() else 0
    cavity = lesion_weight(depth - level, 1.5)
    return (1 - cavity) * lesion + cavity * (0.35 * center + _residual(image))


def _check(
    image: np.ndarray, brain_mask: np.ndarray, volume_ml: float, number: int, rim_mm: float, fluid_fraction: float
) -> None:
    if image.ndim != 3 or image.shape != brain_mask.shape:
        raise ValueError(
            f"`image` and `brain_mask` must have one shape (X, Y, Z), got {image.shape} and {brain_mask.shape}."
        )
    if not 0 < volume_ml <= 500:
        raise ValueError(f"`volume_ml` must be in (0, 500], got {volume_ml}; did you pass cubic millimeters?")
    if number < 1:
        raise ValueError(f"`number` of lesions must be 1 or more, got {number}.")
    if rim_mm < 0:
        raise ValueError(f"`rim_mm` must be 0 or more, got {rim_mm}.")
    if not 0 <= fluid_fraction <= 0.5:
        raise ValueError(f"`fluid_fraction` must be in [0, 0.5], got {fluid_fraction}; did you pass a percentage?")


def _shape(rng: np.random.Generator, volume_ml: float, shapes: Sequence[np.ndarray], flat: bool) -> np.ndarray:
    if len(shapes) and rng.uniform() < 0.5:
        solid = inflated(rng, shapes[int(rng.integers(len(shapes)))], volume_ml)
    else:
        solid = blob(rng, volume_ml)
    return solid[..., solid.shape[2] // 2, None] if flat else solid


def _put(depth: np.ndarray, solid: np.ndarray, spot: np.ndarray, flat: bool) -> None:
    """Unite a lesion with those there are, its middle at ``spot``; what is beyond the grid is cut off."""
    target, source = [], []
    for place, size, length in zip(spot, depth.shape, solid.shape, strict=True):
        start = int(place) - length // 2
        target.append(slice(max(start, 0), min(start + length, size)))
        source.append(slice(max(-start, 0), max(-start, 0) + target[-1].stop - target[-1].start))
    part = depth[tuple(target)]
    np.maximum(part, solid[tuple(source)], out=part)


def _grain(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    sigma = [2.0 if size > 1 else 0.0 for size in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=3)
    return noise / max(noise.std(), 1e-6)


def _residual(image: np.ndarray) -> np.ndarray:
    """The image's own fine grain, so that a lesion does not look painted."""
    return image - ndimage.gaussian_filter(image, [1.5 if size > 1 else 0 for size in image.shape], truncate=3)
