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
from monai.transforms import LoadImaged, MapTransform, Orientationd, RandomizableTransform
from monai.transforms.utils import create_rotate
from scipy import ndimage

from .morphology import box_of, fill_holes
from .transforms import ScanReader


class Tissue(NamedTuple):
    """A tissue: its labels, and for each contrast the lowest and highest mean, in parts of white matter."""

    labels: tuple[int, ...]
    flair: tuple[float, float]
    t1: tuple[float, float]
    t2: tuple[float, float]


# FreeSurfer's labels, and those of the head outside the brain (from 500 on, as in the maps of SynthSeg).
TISSUES = {
    "fluid": Tissue((4, 5, 14, 15, 24, 43, 44, 72), (0.03, 0.5), (0.12, 0.35), (1.9, 3.2)),
    "white": Tissue((2, 41, 85), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)),
    "lesion": Tissue((25, 57), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)),
    "cortex": Tissue((3, 42), (1.02, 1.6), (0.6, 0.8), (1.25, 1.6)),
    "cerebellar_white": Tissue((7, 46), (0.88, 1.12), (0.92, 1.02), (0.95, 1.15)),
    "cerebellar_cortex": Tissue((8, 47), (0.9, 1.4), (0.6, 0.8), (1.2, 1.5)),
    "thalamus": Tissue((10, 49), (0.95, 1.25), (0.75, 0.92), (1.05, 1.3)),
    "caudate": Tissue((11, 50), (1.0, 1.4), (0.62, 0.82), (1.15, 1.5)),
    "accumbens": Tissue((26, 58), (1.0, 1.4), (0.62, 0.82), (1.15, 1.5)),
    "putamen": Tissue((12, 51), (0.95, 1.35), (0.68, 0.86), (1.0, 1.35)),
    "pallidum": Tissue((13, 52), (0.7, 1.05), (0.82, 0.98), (0.65, 0.95)),
    "brain_stem": Tissue((16, 28, 60), (0.88, 1.2), (0.82, 0.98), (0.95, 1.2)),
    "hippocampus": Tissue((17, 53), (1.05, 1.6), (0.6, 0.78), (1.25, 1.65)),
    "amygdala": Tissue((18, 54), (1.05, 1.7), (0.6, 0.78), (1.25, 1.65)),
    "choroid_plexus": Tissue((31, 63, 136, 137, 163, 164), (0.6, 1.7), (0.3, 0.7), (1.3, 2.4)),
    "vessel": Tissue((30, 62, 502, 514), (0.3, 0.8), (0.2, 0.9), (0.2, 0.7)),
    "eye": Tissue((506,), (0.1, 0.5), (0.15, 0.35), (1.8, 3.0)),
    "soft_tissue": Tissue((507, 511), (0.7, 2.0), (0.8, 1.8), (0.6, 1.8)),
    "muscle": Tissue((508, 512, 530), (0.4, 0.9), (0.4, 0.9), (0.4, 0.9)),
    "mucosa": Tissue((509,), (0.9, 1.6), (0.9, 1.6), (0.9, 1.6)),
    "bone": Tissue((515,), (0.02, 0.2), (0.02, 0.2), (0.02, 0.2)),
    "marrow": Tissue((516,), (0.3, 1.3), (0.3, 1.3), (0.3, 1.3)),
}
ANY_MEAN = (0.1, 1.6)
CONTRASTS = ("flair", "t1", "t2", "any")
OTHER_NAMES = {165: 515, 258: 507, 259: 506}  # skull, soft tissue and eyes in other maps of SynthSeg
OUTSIDE = 500  # the first label outside the brain
WHITE = (2, 41, 85, 25, 57)  # with its lesions, which are painted as healthy
CORTEX = (3, 42)
VENTRICLES = (4, 43)
FLUID_AROUND = 24
ENCLOSED = (24, 502, 514)  # fluid, arteries and veins: brain where a brain extraction closes the surface over them
LARGEST_LABEL = 1023


class Limits(NamedTuple):
    """How far volumes may differ from their label map and from each other; ranges are (lowest, highest)."""

    rotation: float = 5.0  # degrees about each axis
    scale: float = 0.08  # of the size along each axis
    elastic: float = 1.5  # standard deviation of an elastic change 25 mm wide, mm
    flip_probability: float = 0.5  # of changing left and right
    resolution: tuple[float, float] = (0.35, 1.4)  # sigma of the Gaussian point spread function, mm
    thickness: tuple[float, float] = (3.0, 6.0)  # of thick slices, mm
    thick_probability: float = 0.5
    texture: tuple[float, float] = (0.02, 0.08)  # deviation within a tissue, in parts of white matter
    shading: float = 0.06  # slow change of the tissues, fraction
    gyri: float = 0.05  # change of the cortex from gyrus to gyrus, fraction
    rim: float = 0.3  # healthy brightening at the ventricles and between them, in "flair" and "t2", fraction
    bias: float = 0.25  # standard deviation of the logarithm of the bias field
    noise: tuple[float, float] = (0.01, 0.12)  # standard deviation of Rician noise, in parts of white matter
    closing: tuple[float, float] = (4.0, 12.0)  # width of the sulci that the brain mask includes, mm
    defects: float = 1.5  # error of the brain mask's rim, mm; 0 gives exact masks
    defects_probability: float = 0.5


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

    Adds ``image`` (1, X, Y, Z), float32, and ``brain_mask`` (1, X, Y, Z), bool, cropped to the brain, and replaces the
    label map by that of the same voxels. `randomize` draws a `Draw`; `made_volume` applies it. Where the data hold a
    ``seed``, it decides the draw.

    Args:
        keys: Key of the label map (1, X, Y, Z): FreeSurfer's labels, 500 and above outside the brain, RAS, 1 mm.
        contrast: "flair", "t1", "t2", or "any" for means without any order.
        limits: How far volumes may differ.
        allow_missing_keys: Leave data without a label map as they are.

    Raises:
        ValueError: When ``contrast`` is unknown.
    """

    draw: Draw  # of the last volume

    def __init__(
        self,
        keys: KeysCollection = "label_map",
        contrast: str = "flair",
        limits: Limits = Limits(),  # noqa: B008
        allow_missing_keys: bool = False,
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        if contrast not in CONTRASTS:
            raise ValueError(f"`contrast` must be one of {', '.join(CONTRASTS)}, got {contrast!r}.")
        self.contrast, self.limits = contrast, limits

    def randomize(self, data: object = None) -> None:
        """Draw what `made_volume` applies."""
        super().randomize(data)
        uniform, limits = self.R.uniform, self.limits
        bright_rim = self.contrast in ("flair", "t2")
        thick = uniform() < limits.thick_probability
        means = {name: uniform(*getattr(tissue, self.contrast, ANY_MEAN)) for name, tissue in TISSUES.items()}
        self.draw = Draw(
            seed=int(self.R.randint(2**31)),
            means=means | {"lesion": means["white"]},
            deviations=self._deviations(),
            matrix=self._matrix(),
            elastic=uniform(0, limits.elastic),
            texture_scale=uniform(1.0, 3.0),
            shading=uniform(0, limits.shading),
            gyri=uniform(0, limits.gyri),
            rim=uniform(0, limits.rim) if bright_rim else 0.0,
            rim_width=uniform(1.5, 4.0),
            septum=uniform(0, limits.rim) if bright_rim else 0.0,
            cap=uniform(0, limits.rim) if bright_rim else 0.0,
            resolution=tuple(uniform(*limits.resolution) * uniform(0.8, 1.2, 3)),
            thickness=uniform(*limits.thickness) if thick else 1.0,
            slice_axis=int(self.R.choice(3, p=(0.2, 0.15, 0.65))),
            bias=uniform(0, limits.bias),
            noise=uniform(*limits.noise),
            closing=uniform(*limits.closing),
            defects=uniform(0, limits.defects) if uniform() < limits.defects_probability else 0.0,
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
        labels = _checked_labels(result[key], str(result.get("case", key)))
        if "seed" in result:
            self.set_random_state(int(result["seed"]))
        self.randomize()
        image, brain_mask, labels, start = made_volume(labels, self.draw)
        affine = np.asarray(result[key].affine) @ nib.affines.from_matvec(np.eye(3), start)
        for name, volume in (("image", image), ("brain_mask", brain_mask), (key, labels)):
            result[name] = MetaTensor(torch.from_numpy(np.ascontiguousarray(volume))[None], affine=affine)
        return result

    def _deviations(self) -> dict[str, float]:
        level = self.R.uniform(*self.limits.texture)
        deviations = {tissue: level * self.R.uniform(0.7, 1.3) for tissue in TISSUES}
        deviations["cerebellar_cortex"] *= self.R.uniform(1, 1.8)  # its folds are not labeled
        return deviations | {"lesion": deviations["white"]}

    def _matrix(self) -> np.ndarray:
        angles = np.deg2rad(self.R.uniform(-self.limits.rotation, self.limits.rotation, 3))
        size = 1 + self.R.uniform(-self.limits.scale, self.limits.scale, 3)
        flip = -1 if self.R.uniform() < self.limits.flip_probability else 1
        return np.diag([flip, 1, 1]) @ create_rotate(3, angles.tolist())[:3, :3] / size


def make_head(label_map: str | os.PathLike, seed: int, transform: RandLabelToImaged) -> dict[Hashable, Any]:
    """Make the volume of a label map file that this seed draws, see `RandLabelToImaged`."""
    load = LoadImaged("label_map", reader=ScanReader, ensure_channel_first=True)
    orient = Orientationd("label_map", "RAS", labels=None)
    return transform(orient(load({"label_map": str(label_map), "seed": seed, "case": str(label_map)})))


def _checked_labels(label_map: MetaTensor, case: str) -> np.ndarray:
    """Check a label map (1, X, Y, Z), and give its labels (X, Y, Z), int16; ``case`` is its name in an error.

    Raises:
        ValueError: When it has another shape, other voxels than 1 mm, other labels than 0 to 1023 or no brain.
    """
    if label_map.ndim != 4 or len(label_map) != 1:
        raise ValueError(f"{case}: a label map must have shape (1, X, Y, Z), got {tuple(label_map.shape)}.")
    spacing = nib.affines.voxel_sizes(np.asarray(label_map.affine))
    if np.abs(spacing - 1).max() > 0.05:
        raise ValueError(
            f"{case}: a label map must have voxels of 1 mm, got {np.round(spacing, 3).tolist()}: resample it."
        )
    labels = np.asarray(label_map[0])
    if not 0 <= labels.min() <= labels.max() <= LARGEST_LABEL:
        raise ValueError(f"{case}: labels must be 0 to {LARGEST_LABEL}, got {labels.min():g} to {labels.max():g}.")
    labels = labels.astype(np.int16)
    for other, label in OTHER_NAMES.items():
        labels[labels == other] = label
    if not ((labels > 0) & (labels < OUTSIDE) & (labels != FLUID_AROUND)).any():
        raise ValueError(f"{case}: no brain in it (labels 1 to {OUTSIDE - 1}): is it a FreeSurfer label map?")
    return labels


def made_volume(labels: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make the volume of one draw, 0 outside the brain mask.

    Args:
        labels: Label map (X, Y, Z), RAS, 1 mm.
        draw: What `RandLabelToImaged` drew.

    Returns:
        Image (float32), brain mask (bool), labels (int16), all of the cropped grid, and the crop's first voxel.
    """
    shape_random, paint_random, rim_random, scan_random, mask_random = (
        np.random.default_rng([draw.seed, stream]) for stream in range(5)
    )  # so that an effect that is left out changes no other
    first = box_of((labels > 0) & (labels < OUTSIDE), 12)
    moved = _moved(labels[first], draw, shape_random)
    exact = brain_mask_of_labels(moved, draw.closing)
    second = box_of(exact, 4)
    moved, exact = moved[second], exact[second]
    image = _painted(moved, draw, paint_random)
    if draw.rim > 0 or draw.cap > 0:
        white = np.isin(moved, WHITE)
        image *= 1 + white * _periventricular(moved, draw, rim_random)
    image = _scanned(image, draw, scan_random)
    brain_mask = _with_defects(exact, draw.defects, mask_random)
    image = np.where(brain_mask, np.maximum(image, 1e-4), 0)
    start = np.array([one.start + other.start for one, other in zip(first, second, strict=True)])
    return image.astype(np.float32), brain_mask, moved, start


def _smooth_field(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """Smooth Gaussian random field (X, Y, Z) of mean 0 and variance 1, drawn on knots ``scale`` voxels apart."""
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
    closed = fill_holes(_closed(half, closing / 4))[pad:-pad, pad:-pad, pad:-pad]
    return tissue | ((_grown(closed.astype(np.float32), labels.shape) > 0.5) & np.isin(labels, ENCLOSED))


def _with_defects(brain_mask: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Move the rim of a brain mask as an imperfect brain extraction does: in and out, missing bits, rests of dura.

    It is off by about ``distance`` (mm), and by three times as much in some bits.
    """
    if distance == 0:
        return brain_mask
    sigma = 1.5 * distance
    soft = ndimage.gaussian_filter(brain_mask.astype(np.float32), sigma, truncate=3)
    field = _smooth_field(rng, brain_mask.shape, 12) + 0.5 * rng.standard_normal()
    level = 0.5 + 0.2 * np.clip(field, -1.5, 1.5)
    bits = _smooth_field(rng, brain_mask.shape, 7)
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
            points += torch.from_numpy(_smooth_field(rng, shape, 25.0)) * draw.elastic
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
    for name, tissue in TISSUES.items():
        table[list(tissue.labels)] = values[name]
    return table


def _painted(labels: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Tissues with texture and slow variation."""
    image = _table(draw.means)[labels]
    fine = ndimage.gaussian_filter(rng.standard_normal(labels.shape, dtype=np.float32), 0.7, truncate=2.5)
    texture = 0.6 * fine / fine.std() + 0.8 * _smooth_field(rng, labels.shape, 2 * draw.texture_scale)
    image += _table(draw.deviations)[labels] * texture
    if draw.gyri > 0:
        image *= 1 + np.isin(labels, CORTEX) * draw.gyri * _smooth_field(rng, labels.shape, 12.0)
    return image * (1 + draw.shading * _smooth_field(rng, labels.shape, 18.0))


def _periventricular(labels: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Fraction by which a healthy brain is brighter beside its lateral ventricles and at their horns."""
    result = np.zeros(labels.shape, dtype=np.float32)
    halves = [_halved(labels == label) > 0.25 for label in VENTRICLES]
    both = halves[0] | halves[1]
    if not both.any():
        return result
    distance = 2 * ndimage.distance_transform_edt(~both).astype(np.float32)
    uneven = np.clip(1 + 0.5 * _smooth_field(rng, both.shape, 8.0), 0, 2)
    brighter = draw.rim * uneven * np.exp(-((distance / draw.rim_width) ** 2))
    brighter += draw.septum * uneven * (_closed(both, 2) & ~both)
    grid = np.ogrid[tuple(slice(size) for size in both.shape)]
    for half in halves:
        points = np.argwhere(half)
        for tip in (points[:, 1].argmax(), points[:, 1].argmin()) if len(points) else ():
            away = 4 * sum((axis - place) ** 2 for axis, place in zip(grid, points[tip], strict=True))
            brighter += draw.cap * rng.uniform(0.3, 1) * np.exp(-away / (2 * rng.uniform(3, 6) ** 2))
    return _grown(brighter.astype(np.float32), labels.shape)


def _closed(mask: np.ndarray, steps: float) -> np.ndarray:
    """A mask with its gaps of up to twice as many voxels."""
    wide = ndimage.distance_transform_edt(~mask) <= steps
    return ndimage.distance_transform_edt(wide) > steps


def _scanned(image: np.ndarray, draw: Draw, rng: np.random.Generator) -> np.ndarray:
    """Point spread function, bias field, thick slices, Rician noise."""
    image = ndimage.gaussian_filter(image, draw.resolution, truncate=3)
    if draw.bias > 0:
        image *= np.exp(draw.bias * _smooth_field(rng, image.shape, max(image.shape) / 2.5))
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
