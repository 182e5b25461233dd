"""Brains made from anatomical label maps: healthy volumes of any contrast with exact brain masks, without a scan.

After SynthSeg (Billot et al. 2023): each tissue gets a mean and a deviation, and the volume then goes through what a
scanner and a brain extraction do to it. Here the means are those of a named contrast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from scipy import ndimage

from .morphology import box_of
from .nifti import load_volume

# FreeSurfer's labels, and those of the head outside the brain (from 500 on, as in the maps of SynthSeg).
TISSUES = {
    "fluid": (4, 5, 14, 15, 24, 43, 44, 72),
    "white": (2, 41, 85),
    "lesion": (25, 57),
    "cortex": (3, 42),
    "cerebellar_white": (7, 46),
    "cerebellar_cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "accumbens": (26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brain_stem": (16, 28, 60),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "choroid_plexus": (31, 63, 136, 137, 163, 164),
    "vessel": (30, 62, 502, 514),
    "eye": (506,),
    "soft_tissue": (507, 511),
    "muscle": (508, 512, 530),
    "mucosa": (509,),
    "bone": (515,),
    "marrow": (516,),
}
OTHER_NAMES = {165: 515, 258: 507, 259: 506}  # skull, soft tissue and eyes in other maps of SynthSeg
OUTSIDE = 500  # the first label outside the brain
VENTRICLES = (4, 43)
FLUID_AROUND = 24
ENCLOSED = (24, 502, 514)  # fluid, arteries and veins: brain where a brain extraction closes the surface over them
LARGEST_LABEL = 1023

# Lowest and highest mean of each tissue, in parts of white matter.
_HEAD = {"bone": (0.02, 0.2), "muscle": (0.4, 0.9), "marrow": (0.3, 1.3), "mucosa": (0.9, 1.6)}
MEANS = {
    "flair": _HEAD
    | {
        "fluid": (0.03, 0.5),
        "white": (1, 1),
        "lesion": (1.4, 1.9),
        "cortex": (1.02, 1.6),
        "cerebellar_white": (0.88, 1.12),
        "cerebellar_cortex": (0.9, 1.4),
        "thalamus": (0.95, 1.25),
        "caudate": (1.0, 1.4),
        "accumbens": (1.0, 1.4),
        "putamen": (0.95, 1.35),
        "pallidum": (0.7, 1.05),
        "brain_stem": (0.88, 1.2),
        "hippocampus": (1.05, 1.6),
        "amygdala": (1.05, 1.7),
        "choroid_plexus": (0.6, 1.7),
        "vessel": (0.3, 0.8),
        "eye": (0.1, 0.5),
        "soft_tissue": (0.7, 2.0),
    },
    "t1": _HEAD
    | {
        "fluid": (0.12, 0.35),
        "white": (1, 1),
        "lesion": (0.5, 0.8),
        "cortex": (0.6, 0.8),
        "cerebellar_white": (0.92, 1.02),
        "cerebellar_cortex": (0.6, 0.8),
        "thalamus": (0.75, 0.92),
        "caudate": (0.62, 0.82),
        "accumbens": (0.62, 0.82),
        "putamen": (0.68, 0.86),
        "pallidum": (0.82, 0.98),
        "brain_stem": (0.82, 0.98),
        "hippocampus": (0.6, 0.78),
        "amygdala": (0.6, 0.78),
        "choroid_plexus": (0.3, 0.7),
        "vessel": (0.2, 0.9),
        "eye": (0.15, 0.35),
        "soft_tissue": (0.8, 1.8),
    },
    "t2": _HEAD
    | {
        "fluid": (1.9, 3.2),
        "white": (1, 1),
        "lesion": (1.5, 2.2),
        "cortex": (1.25, 1.6),
        "cerebellar_white": (0.95, 1.15),
        "cerebellar_cortex": (1.2, 1.5),
        "thalamus": (1.05, 1.3),
        "caudate": (1.15, 1.5),
        "accumbens": (1.15, 1.5),
        "putamen": (1.0, 1.35),
        "pallidum": (0.65, 0.95),
        "brain_stem": (0.95, 1.2),
        "hippocampus": (1.25, 1.65),
        "amygdala": (1.25, 1.65),
        "choroid_plexus": (1.3, 2.4),
        "vessel": (0.2, 0.7),
        "eye": (1.8, 3.0),
        "soft_tissue": (0.6, 1.8),
    },
    "any": {tissue: (0.1, 1.6) for tissue in TISSUES},
}
CONTRASTS = tuple(MEANS)


class Draw(NamedTuple):
    """All that is random about one made volume; the same draw of the same map is the same volume."""

    seed: int  # of the fields and the noise
    means: dict[str, float]  # of each tissue, white matter is 1 (except for the contrast "any")
    deviations: dict[str, float]  # of each tissue's texture, in parts of white matter
    matrix: np.ndarray  # (3, 3): output to input coordinates, flip included
    elastic: float  # standard deviation of the displacement, mm
    texture_scale: float  # correlation length of the texture, mm
    shading: float  # slow variation of the tissue itself, fraction
    gyri: float  # variation of the cortex from gyrus to gyrus, fraction: insula and cingulate are bright in FLAIR
    rim: float  # brightening of white matter at the ventricles, fraction
    rim_width: float  # mm
    septum: float  # brightening of thin tissue between ventricles, fraction
    cap: float  # the same in front of and behind the horns, fraction
    resolution: tuple[float, float, float]  # Gaussian sigma along each axis, mm
    thickness: float  # of slices, mm; 1 leaves them
    slice_axis: int
    bias: float  # standard deviation of the logarithm of the bias field
    noise: float  # standard deviation, in parts of white matter
    closing: float  # widest sulcus that belongs to the brain mask, mm
    defects: float  # of the brain mask: about how far its rim is off, mm


class RandLabelToImaged(RandomizableTransform, MapTransform):
    """Make a healthy volume from a label map: tissues of a drawn contrast, then the scanner, then brain extraction.

    Adds ``image`` (1, X, Y, Z), float32, and ``brain_mask`` (1, X, Y, Z), bool, RAS at 1 mm, cropped to the brain,
    and replaces the label map by that of the same voxels. `randomize` draws a `Draw`; `made_volume` applies it. Where
    the data hold a ``seed``, it decides the draw.

    Args:
        keys: Key of the label map (1, X, Y, Z): FreeSurfer's labels, 500 and above outside the brain, 1 mm voxels in
            any orientation; a tensor without an affine is RAS.
        contrast: "flair", "t1", "t2", or "any" for means without any order.
        lesions: Show the labels 25 and 57 (white matter lesions); False paints them as healthy white matter.
        skull: Keep what lies outside the brain mask, and crop to the head; False sets it to 0.
        rotation_degrees: Largest angle about each axis.
        scale_fraction: Largest change of size along each axis.
        elastic_mm: Largest standard deviation of an elastic change 25 mm wide.
        flip_probability: Of changing left and right.
        resolution_mm: Lowest and highest sigma of the Gaussian point spread function.
        thickness_mm: Lowest and highest thickness of thick slices.
        thick_probability: Of thick slices.
        texture_fraction: Lowest and highest deviation within a tissue, in parts of white matter.
        shading_fraction: Largest slow change of the tissues.
        gyri_fraction: Largest change of the cortex from gyrus to gyrus.
        rim_fraction: Largest brightening at the ventricles and between them; it is healthy, and only in "flair" and
            "t2".
        bias_fraction: Largest standard deviation of the bias field.
        noise_fraction: Lowest and highest standard deviation of Rician noise, in parts of white matter.
        closing_mm: Lowest and highest width of the sulci that the brain mask includes.
        defects_mm: Largest error of the brain mask's rim; 0 gives exact masks.
        defects_probability: Of such errors.
        image_key: Where to put the volume.
        brain_mask_key: Where to put its brain mask.
        allow_missing_keys: Leave data without a label map as they are.

    Raises:
        ValueError: When ``contrast`` is unknown, a probability is not in [0, 1], or a strength is negative or out of
            order.
    """

    draw: Draw  # of the last volume

    def __init__(
        self,
        keys: KeysCollection = "label_map",
        contrast: str = "flair",
        lesions: bool = False,
        skull: bool = False,
        rotation_degrees: float = 5.0,
        scale_fraction: float = 0.08,
        elastic_mm: float = 1.5,
        flip_probability: float = 0.5,
        resolution_mm: Sequence[float] = (0.35, 1.4),
        thickness_mm: Sequence[float] = (3.0, 6.0),
        thick_probability: float = 0.5,
        texture_fraction: Sequence[float] = (0.02, 0.08),
        shading_fraction: float = 0.06,
        gyri_fraction: float = 0.05,
        rim_fraction: float = 0.3,
        bias_fraction: float = 0.25,
        noise_fraction: Sequence[float] = (0.01, 0.12),
        closing_mm: Sequence[float] = (4.0, 12.0),
        defects_mm: float = 1.5,
        defects_probability: float = 0.5,
        image_key: str = "image",
        brain_mask_key: str = "brain_mask",
        allow_missing_keys: bool = False,
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        if contrast not in CONTRASTS:
            raise ValueError(f"`contrast` must be one of {', '.join(CONTRASTS)}, got {contrast!r}.")
        self.contrast, self.lesions, self.skull = contrast, bool(lesions), bool(skull)
        self.flip_probability = _probability("flip_probability", flip_probability)
        self.thick_probability = _probability("thick_probability", thick_probability)
        self.defects_probability = _probability("defects_probability", defects_probability)
        self.rotation_degrees = _strength("rotation_degrees", rotation_degrees, 180)
        self.scale_fraction = _strength("scale_fraction", scale_fraction, 0.5)
        self.elastic_mm = _strength("elastic_mm", elastic_mm, 10)
        self.shading_fraction = _strength("shading_fraction", shading_fraction, 1)
        self.gyri_fraction = _strength("gyri_fraction", gyri_fraction, 1)
        self.rim_fraction = _strength("rim_fraction", rim_fraction, 2)
        self.bias_fraction = _strength("bias_fraction", bias_fraction, 1)
        self.defects_mm = _strength("defects_mm", defects_mm, 10)
        self.resolution_mm = _range("resolution_mm", resolution_mm, 10)
        self.thickness_mm = _range("thickness_mm", thickness_mm, 20)
        self.texture_fraction = _range("texture_fraction", texture_fraction, 1)
        self.noise_fraction = _range("noise_fraction", noise_fraction, 1)
        self.closing_mm = _range("closing_mm", closing_mm, 60)
        self.image_key, self.brain_mask_key = image_key, brain_mask_key

    def randomize(self, data: object = None) -> None:
        """Draw what `made_volume` applies."""
        super().randomize(data)
        uniform = self.R.uniform
        bright_rim = self.contrast in ("flair", "t2")
        thick = uniform() < self.thick_probability
        means = {tissue: uniform(*MEANS[self.contrast][tissue]) for tissue in TISSUES}
        if not self.lesions:
            means["lesion"] = means["white"]
        self.draw = Draw(
            seed=int(self.R.randint(2**31)),
            means=means,
            deviations=self._deviations(),
            matrix=self._matrix(),
            elastic=uniform(0, self.elastic_mm),
            texture_scale=uniform(1.0, 3.0),
            shading=uniform(0, self.shading_fraction),
            gyri=uniform(0, self.gyri_fraction),
            rim=uniform(0, self.rim_fraction) if bright_rim else 0.0,
            rim_width=uniform(1.5, 4.0),
            septum=uniform(0, self.rim_fraction) if bright_rim else 0.0,
            cap=uniform(0, self.rim_fraction) if bright_rim else 0.0,
            resolution=tuple(uniform(*self.resolution_mm) * uniform(0.8, 1.2, 3)),
            thickness=uniform(*self.thickness_mm) if thick else 1.0,
            slice_axis=int(self.R.choice(3, p=(0.2, 0.15, 0.65))),
            bias=uniform(0, self.bias_fraction),
            noise=uniform(*self.noise_fraction),
            closing=uniform(*self.closing_mm),
            defects=uniform(0, self.defects_mm) if uniform() < self.defects_probability else 0.0,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make a volume.

        Raises:
            ValueError: When the label map is not (1, X, Y, Z), has other voxels than 1 mm, or no brain.
        """
        result = dict(data)
        key = self.first_key(result)
        if not key:
            return result
        labels, affine = oriented_labels(result[key], str(result.get("case", key)))
        if "seed" in result:
            self.set_random_state(int(result["seed"]))
        self.randomize()
        image, brain_mask, labels, start = made_volume(labels, self.draw, self.skull)
        affine = affine @ nib.affines.from_matvec(np.eye(3), start)
        for name, volume in ((self.image_key, image), (self.brain_mask_key, brain_mask), (key, labels)):
            result[name] = MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=affine)
        return result

    def _deviations(self) -> dict[str, float]:
        level = self.R.uniform(*self.texture_fraction)
        deviations = {tissue: level * self.R.uniform(0.7, 1.3) for tissue in TISSUES}
        deviations["cerebellar_cortex"] *= self.R.uniform(1, 1.8)  # its folds are not labeled
        return deviations if self.lesions else deviations | {"lesion": deviations["white"]}

    def _matrix(self) -> np.ndarray:
        angles = np.deg2rad(self.R.uniform(-self.rotation_degrees, self.rotation_degrees, 3))
        (a, b, c), (d, e, f) = np.cos(angles), np.sin(angles)
        rotation = (
            np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
            @ np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
            @ np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
        )
        size = 1 + self.R.uniform(-self.scale_fraction, self.scale_fraction, 3)
        flip = -1 if self.R.uniform() < self.flip_probability else 1
        return np.diag([flip, 1, 1]) @ rotation / size


def make_head(label_map: str | os.PathLike, seed: int, transform: RandLabelToImaged) -> dict[Hashable, Any]:
    """Make the volume of a label map file that this seed draws, see `RandLabelToImaged`."""
    source = load_volume(label_map)
    labels = torch.from_numpy(np.asarray(source.dataobj).astype(np.int16))[None]
    return transform({"label_map": MetaTensor(labels, affine=source.affine), "seed": seed, "case": str(label_map)})


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}; did you pass a percentage?")
    return float(value)


def _strength(name: str, value: float, highest: float) -> float:
    if not 0 <= value <= highest:
        raise ValueError(f"`{name}` must be in [0, {highest}], got {value}; 0 leaves this effect out.")
    return float(value)


def _range(name: str, values: Sequence[float], highest: float) -> tuple[float, float]:
    if len(values) != 2 or not 0 <= values[0] <= values[1] <= highest:
        raise ValueError(f"`{name}` must be (lowest, highest) with 0 <= lowest <= highest <= {highest}, got {values}.")
    return float(values[0]), float(values[1])


def oriented_labels(label_map: torch.Tensor, case: str = "The label map") -> tuple[np.ndarray, np.ndarray]:
    """Check a label map and turn its axes to RAS.

    Args:
        label_map: Labels (1, X, Y, Z), in any orientation where it has an affine.
        case: What an error calls it.

    Returns:
        Labels (X, Y, Z), int16, and their affine.

    Raises:
        ValueError: When it has another shape, other voxels than 1 mm, other labels than 0 to 1023 or no brain.
    """
    if label_map.ndim != 4 or len(label_map) != 1:
        raise ValueError(f"{case}: a label map must have shape (1, X, Y, Z), got {tuple(label_map.shape)}.")
    affine = np.asarray(label_map.affine, dtype=float) if isinstance(label_map, MetaTensor) else np.eye(4)
    spacing = nib.affines.voxel_sizes(affine)
    if np.abs(spacing - 1).max() > 0.05:
        raise ValueError(
            f"{case}: a label map must have voxels of 1 mm, got {np.round(spacing, 3).tolist()}: resample it."
        )
    labels = np.asarray(label_map[0])
    orientation = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, labels.shape)
    labels = nib.orientations.apply_orientation(labels, orientation)
    if not 0 <= labels.min() <= labels.max() <= LARGEST_LABEL:
        raise ValueError(f"{case}: labels must be 0 to {LARGEST_LABEL}, got {labels.min():g} to {labels.max():g}.")
    labels = labels.astype(np.int16)
    for other, label in OTHER_NAMES.items():
        labels[labels == other] = label
    if not ((labels > 0) & (labels < OUTSIDE) & (labels != FLUID_AROUND)).any():
        raise ValueError(f"{case}: no brain in it (labels 1 to {OUTSIDE - 1}): is it a FreeSurfer label map?")
    return labels, affine


def made_volume(
    labels: np.ndarray, draw: Draw, skull: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make the volume of one draw.

    Args:
        labels: Label map (X, Y, Z), RAS, 1 mm.
        draw: What `RandLabelToImaged` drew.
        skull: Keep what lies outside the brain mask.

    Returns:
        Image (float32), brain mask (bool), labels (int16), all of the cropped grid, and the crop's first voxel.
    """
    shape_random, paint_random, rim_random, scan_random, mask_random = (
        np.random.default_rng([draw.seed, stream]) for stream in range(5)
    )  # so that an effect that is left out changes no other
    inside = labels > 0 if skull else (labels > 0) & (labels < OUTSIDE)
    first = box_of(inside, 12)
    moved = _moved(labels[first], draw, shape_random)
    exact = brain_mask_of_labels(moved, draw.closing)
    second = box_of(moved > 0 if skull else exact, 4)
    moved, exact = moved[second], exact[second]
    image = _painted(moved, draw, paint_random)
    if draw.rim > 0 or draw.cap > 0:
        white = np.isin(moved, TISSUES["white"] + TISSUES["lesion"])
        image *= 1 + white * _periventricular(moved, draw, rim_random)
    image = _scanned(image, draw, scan_random)
    brain_mask = with_defects(exact, draw.defects, mask_random)
    if not skull:
        image = np.where(brain_mask, np.maximum(image, 1e-4), 0)
    start = np.array([one.start + other.start for one, other in zip(first, second, strict=True)])
    return image.astype(np.float32), brain_mask, moved, start


def smooth_field(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """Smooth Gaussian random field of mean 0 and variance 1, drawn on knots ``scale`` voxels apart.

    Args:
        rng: Source of randomness.
        shape: Voxels (X, Y, Z).
        scale: Correlation length in voxels.

    Returns:
        (X, Y, Z), float32.
    """
    bases = []
    for size in shape:
        knots = np.arange(-2, math.ceil(size / scale) + 3) * scale
        basis = np.exp(-(((np.arange(size)[:, None] - knots) / scale) ** 2))
        bases.append((basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in bases:  # the first axis goes, a new last one comes
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def brain_mask_of_labels(labels: np.ndarray, closing: float) -> np.ndarray:
    """The brain with the fluid of its ventricles and of sulci narrower than ``closing`` (mm): (X, Y, Z), bool."""
    tissue = (labels > 0) & (labels < OUTSIDE) & (labels != FLUID_AROUND)
    if closing < 1:
        return tissue
    pad = math.ceil(closing / 4) + 1
    half = np.pad(_halved(tissue) > 0.5, pad)
    wide = ndimage.distance_transform_edt(~half) * 2 <= closing / 2
    closed = ndimage.distance_transform_edt(wide) * 2 > closing / 2
    closed = ndimage.binary_fill_holes(closed)[pad:-pad, pad:-pad, pad:-pad]
    return tissue | ((_grown(closed.astype(np.float32), labels.shape) > 0.5) & np.isin(labels, ENCLOSED))


def with_defects(brain_mask: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Move the rim of a brain mask as an imperfect brain extraction does: in and out, missing bits, rests of dura.

    Args:
        brain_mask: Exact mask (X, Y, Z), bool.
        distance: About how far the rim is off, mm; some bits are three times as far.
        rng: Source of randomness.

    Returns:
        (X, Y, Z), bool.
    """
    if distance == 0:
        return brain_mask
    sigma = 1.5 * distance
    soft = ndimage.gaussian_filter(brain_mask.astype(np.float32), sigma, truncate=3)
    field = smooth_field(rng, brain_mask.shape, 12) + 0.5 * rng.standard_normal()
    level = 0.5 + 0.2 * np.clip(field, -1.5, 1.5)
    bits = smooth_field(rng, brain_mask.shape, 7)
    level = np.where(bits > 2.2, 0.12, np.where(bits < -2.4, 0.88, level))
    return soft > level


def _moved(labels: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Labels under the draw's affine and elastic change, nearest neighbor, about the center of the grid."""
    shape = labels.shape
    offsets = [torch.arange(size, dtype=torch.float32) - (size - 1) / 2 for size in shape]
    axes = torch.meshgrid(*offsets, indexing="ij")
    coordinates = []
    for row, size in zip(torch.from_numpy(draw.matrix).float(), shape, strict=True):
        points = sum(weight * axis for weight, axis in zip(row, axes, strict=True))
        if draw.elastic > 0:
            points += torch.from_numpy(smooth_field(rng, shape, 25.0)) * draw.elastic
        coordinates.append(points * (2 / max(size - 1, 1)))
    grid = torch.stack(coordinates[::-1], dim=-1)[None]
    source = torch.from_numpy(labels.astype(np.float32))[None, None]
    return F.grid_sample(source, grid, mode="nearest", align_corners=True)[0, 0].numpy().astype(np.int16)


def _halved(volume: np.ndarray) -> np.ndarray:
    return F.avg_pool3d(torch.from_numpy(volume.astype(np.float32))[None], 2, ceil_mode=True)[0].numpy()


def _grown(half: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    size = [2 * number for number in half.shape]
    grown = F.interpolate(torch.from_numpy(half)[None, None], size=size, mode="trilinear")[0, 0].numpy()
    return grown[tuple(slice(number) for number in shape)]


def _table(values: Mapping[str, float]) -> np.ndarray:
    table = np.zeros(LARGEST_LABEL + 1, dtype=np.float32)
    for tissue, labels in TISSUES.items():
        table[list(labels)] = values[tissue]
    return table


def _painted(labels: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Tissues with texture and slow variation."""
    image = _table(draw.means)[labels]
    fine = ndimage.gaussian_filter(rng.standard_normal(labels.shape, dtype=np.float32), 0.7, truncate=2.5)
    texture = 0.6 * fine / fine.std() + 0.8 * smooth_field(rng, labels.shape, 2 * draw.texture_scale)
    image += _table(draw.deviations)[labels] * texture
    if draw.gyri > 0:
        image *= 1 + np.isin(labels, TISSUES["cortex"]) * draw.gyri * smooth_field(rng, labels.shape, 12.0)
    return image * (1 + draw.shading * smooth_field(rng, labels.shape, 18.0))


def _periventricular(labels: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Fraction by which a healthy brain is brighter beside its lateral ventricles and at their horns."""
    result = np.zeros(labels.shape, dtype=np.float32)
    halves = [_halved(labels == label) > 0.25 for label in VENTRICLES]
    both = halves[0] | halves[1]
    if not both.any():
        return result
    distance = 2 * ndimage.distance_transform_edt(~both).astype(np.float32)
    uneven = np.clip(1 + 0.5 * smooth_field(rng, both.shape, 8.0), 0, 2)
    brighter = draw.rim * uneven * np.exp(-((distance / draw.rim_width) ** 2))
    brighter += draw.septum * uneven * (_closed(both, 2) & ~both)
    grid = np.ogrid[tuple(slice(size) for size in both.shape)]
    for half in halves:
        points = np.argwhere(half)
        for tip in (points[:, 1].argmax(), points[:, 1].argmin()) if len(points) else ():
            away = 4 * sum((axis - place) ** 2 for axis, place in zip(grid, points[tip], strict=True))
            brighter += draw.cap * rng.uniform(0.3, 1) * np.exp(-away / (2 * rng.uniform(3, 6) ** 2))
    return _grown(brighter.astype(np.float32), labels.shape)


def _closed(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask with its gaps of up to twice as many voxels."""
    wide = ndimage.distance_transform_edt(~mask) <= steps
    return ndimage.distance_transform_edt(wide) > steps


def _scanned(image: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Point spread function, bias field, thick slices, Rician noise."""
    image = ndimage.gaussian_filter(image, draw.resolution, truncate=3)
    if draw.bias > 0:
        image *= np.exp(draw.bias * smooth_field(rng, image.shape, max(image.shape) / 2.5))
    shape = list(image.shape)
    if draw.thickness > 1:
        acquired = list(shape)
        acquired[draw.slice_axis] = max(round(shape[draw.slice_axis] / draw.thickness), 1)
        image = F.interpolate(torch.from_numpy(image)[None, None], size=acquired, mode="area")[0, 0].numpy()
    if draw.noise > 0:
        real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * draw.noise
        image = np.hypot(image + real, imaginary)
    if draw.thickness > 1:
        image = F.interpolate(torch.from_numpy(image)[None, None], size=shape, mode="trilinear")[0, 0].numpy()
    return image
