"""Brains that need no scan: FreeSurfer label maps drawn in code, and small phantoms to train and to test on.

Anatomy is drawn in millimeters, from distances to simple shapes under smooth random fields. So a seed is the same brain
on any grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm.contrib.concurrent import thread_map

from ..common.outputs import atomic, check_writable, write_text
from ..data.dataset import SPLITS
from ..data.made_lesions import add_lesions

FIELD_OF_VIEW = np.array([168.0, 196.0, 48.0])  # mm, of a phantom: a slab of axial slices through the ventricles
CENTER = np.array([1.5, -17.0, 14.0])  # mm; scanner coordinates of the middle of a brain
HALF_FIELD = 126.0  # mm around the middle in which random fields are drawn

FLUID, FLUID_LABELS = 24, (24, 4, 43, 14, 15)
CORTEX_LABELS, WHITE_LABELS = (3, 42, 8, 47), (2, 41, 7, 46, 16)
# Signal of fluid, cortex, deep gray matter and white matter.
SIGNAL = {"flair": (0.18, 0.92, 0.85, 0.70), "t1": (0.20, 0.62, 0.72, 1.00), "t2": (1.65, 0.90, 0.80, 0.62)}
# Contrast of a lesion in deviations of white matter.
LESIONS = {
    "bright": {"flair": 11.0, "t1": -6.0, "t2": 12.0},
    "dark": {"flair": -7.0, "t1": -8.0, "t2": 11.0},
}
LESION_ML = (10.0, 60.0)

Points = Sequence[np.ndarray]


def label_map(seed: int | Sequence[int], grid: Points) -> np.ndarray:
    """Draw a brain as a map of FreeSurfer's labels.

    Args:
        seed: Seed of the brain, or several numbers that together are the seed.
        grid: Places of the voxels along each axis, in mm to the right, the front and the top of the brain's middle. A
            whole brain lies within 76 mm to either side, 95 mm to the back and the front, and from -83 to 75 mm.

    Returns:
        Labels (X, Y, Z), int16: 24 for the fluid around the brain, 0 beyond it.
    """
    rng = np.random.default_rng([*np.atleast_1d(seed), 0])
    points: list[np.ndarray] = [axis.astype(np.float32) for axis in np.meshgrid(*grid, indexing="ij")]
    points = [p + 1.6 * _smooth_field(rng, grid, 30.0) + 0.9 * _smooth_field(rng, grid, 12.0) for p in points]
    x, y, z = points
    half = (np.abs(x), y, z)  # the left half is the mirror image of the right one
    levels = [(0, -12, -10), (0, -13, -20), (0, -9, -32), (0, -14, -44), (0, -21, -66)]  # of the brain stem
    stem = _tubes(points, levels, (13, 13, 16, 10, 7))
    hemisphere, vermis = _ellipsoid(half, (24, -48, -42), (27, 27, 21)), _ellipsoid(half, (0, -46, -38), (16, 24, 20))
    cerebellum = _union(hemisphere, vermis, 3)
    cerebrum = np.minimum(_cerebrum(points, half), -cerebellum - 2)
    labels = np.zeros(x.shape, np.int16)

    def paint(where: np.ndarray, left: int, right: int | None = None) -> None:
        labels[where] = left if right is None else np.where(x[where] > 0, right, left)

    paint(np.max([cerebrum, cerebellum + 1, stem + 2], axis=0) > -1.5, FLUID)
    pial = _pial_depth(rng, grid, points, half, cerebrum)
    paint(pial > rng.uniform(0.5, 1.1), 3, 42)
    paint(pial > rng.uniform(3.4, 4.2), 2, 41)
    paint(cerebellum > 0, FLUID)
    paint((cerebellum > 0.6) & (_folia(rng, grid, y, z, cerebellum) > 0.55), 8, 47)
    core = _ellipsoid(half, (19, -44, -42), (17, 13, 9)) + 0.8 * _smooth_field(rng, grid, 6.0)
    paint(core > 0, 7, 46)
    paint(stem > 0, 16)
    for shape, left, right in _deep_structures(half, rng.uniform(0.8, 1.3)):
        paint(shape > 0, left, right)
    return labels


def _smooth_field(rng: np.random.Generator, grid: Points, scale: float) -> np.ndarray:
    """Draw a Gaussian random field of mean 0, variance 1 and correlation length ``scale`` (mm), on any grid."""
    knots = np.arange(-HALF_FIELD, HALF_FIELD + scale, scale)
    field = rng.standard_normal([len(knots)] * 3, dtype=np.float32)
    for places in grid:  # the first axis goes, a new last one comes
        basis = np.exp(-(((places[:, None] - knots) / scale) ** 2))
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        field = np.tensordot(field, basis.astype(np.float32), axes=(0, 1))
    return field


def _ellipsoid(points: Points, center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Depth (mm, about) under the surface of an ellipsoid, negative outside."""
    radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(points, center, radii, strict=True)))
    return (1 - radius) * min(radii)


def _tube(points: Points, start: Sequence[float], end: Sequence[float], widths: Sequence[float] = (0, 0)) -> np.ndarray:
    """Depth (mm) in a round tube between two points whose radius goes from one width to the other."""
    axis = np.subtract(end, start).astype(np.float32)
    along = sum((p - s) * a for p, s, a in zip(points, start, axis, strict=True)) / (axis @ axis)
    along = np.clip(along, 0, 1)
    squares = sum((p - s - along * a) ** 2 for p, s, a in zip(points, start, axis, strict=True))
    return widths[0] + (widths[1] - widths[0]) * along - np.sqrt(squares)


def _tubes(points: Points, places: Sequence[Sequence[float]], widths: Sequence[float]) -> np.ndarray:
    """Depth (mm) in tubes from each place to the next."""
    parts = zip(places, places[1:], widths, widths[1:], strict=False)
    return np.max([_tube(points, start, end, (first, last)) for start, end, first, last in parts], axis=0)


def _union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Depth in either of two shapes, rounded over ``width`` (mm) where they meet."""
    return width * np.logaddexp(first / width, second / width)


def _cerebrum(points: Points, half: Points) -> np.ndarray:
    """Depth (mm) under the outline of the cerebrum: a dome with a floor, and two temporal lobes."""
    (x, y, z), side = points, half[0]
    dome = _ellipsoid((x * (1 + 0.0015 * y), y, z), (0, 0, 6), (67, 85, 62))
    floor = 0.9 * (z + 28 - 0.0016 * (side - 18) ** 2 + 0.05 * y)
    temporal = _ellipsoid(half, (42, -4, -24), (23, 44, 23))
    return _union(-_union(-dome, -floor, 6), temporal, 3)


def _pial_depth(
    rng: np.random.Generator, grid: Points, points: Points, half: Points, outline: np.ndarray
) -> np.ndarray:
    """Distance (mm) to the folded surface of the brain: outline, sulci, Sylvian fissures and the cleft in the middle.

    Sulci are the zero level set of a random field. It is read at points pushed out towards the outline, which makes
    it vary along the surface more than in depth, so that sulci run inwards.
    """
    knots = [np.arange(-extent, extent + 3, 3.0) for extent in (102, 114, 102)]
    field = _smooth_field(rng, knots, 5.5)
    slope = np.sqrt(sum(part**2 for part in np.gradient(field, 3.0)))
    signed = field / (slope + 0.2 * slope.mean())
    radius = 1 - _ellipsoid(points, (0, 0, 6), (67, 85, 62)) / 62 + 1e-6
    push = (0.5 + 0.5 * radius) / radius
    indices = [(point * push - places[0]) / 3.0 for point, places in zip(points, knots, strict=True)]
    sulcus = np.abs(ndimage.map_coordinates(signed, indices, order=1, mode="nearest"))
    end = np.maximum(outline - 20 - 6 * _smooth_field(rng, grid, 14.0), _ellipsoid(points, (0, -4, -4), (36, 58, 28)))
    sulcus = np.hypot(sulcus, np.maximum(end, 0))
    (x, y, z), side = points, half[0]
    callosum = np.sqrt(np.maximum(1 - (z / 22) ** 2, 0)) * 42 - np.abs(y + 2)
    cleft = np.hypot(x, np.maximum(callosum, 0))
    flat = (side, y, 0.3 * z)  # flattened, which makes sheets of tubes
    fissure, insula = _tube(flat, (68, -8, 0), (44, 4, -1)), _tube(flat, (42, -18, 0), (40, 20, -1))
    return np.min([outline, sulcus, cleft, -fissure, -insula], axis=0)


def _folia(rng: np.random.Generator, grid: Points, y: np.ndarray, z: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Distance (mm) to the clefts of the cerebellum, which fan out from the fourth ventricle, near its surface."""
    angle = np.arctan2(z + 40, -(y + 26)) + 0.05 * _smooth_field(rng, grid, 10.0)
    clefts = np.hypot(y + 26, z + 40) * np.abs(np.sin(13 * angle)) / 13
    return np.hypot(clefts, np.maximum(outline - 9, 0))


def _deep_structures(half: Points, size: float) -> list[tuple[np.ndarray, int, int | None]]:
    """Depth (mm) in deep gray nuclei and in ventricles of ``size``, with the labels of the left and the right one."""
    caudate = _tubes(half, [(14, 20, 8), (17, -6, 14), (21, -26, 12)], (4, 3, 1.5))
    horns = [(5, 32, 0), (8, 12, 8), (13, -20, 8), (24, -36, 0), (20, -52, -4)]
    lateral = _tubes(half, horns, [size * width for width in (4.5, 6, 6, 6, 3.5)])
    temporal = _tubes(half, [(24, -36, 0), (31, -22, -14), (29, -6, -20)], [size * width for width in (4, 2.2, 2)])
    return [
        (_ellipsoid(half, (11, -10, 1), (8.5, 14, 10)), 10, 49),  # thalamus
        (_tube(half, (12, -22, -8), (8, -10, -16), (5, 6)), 28, 60),  # ventral diencephalon
        (np.maximum(_ellipsoid(half, (14, 20, 3), (5.5, 9, 11)), caudate), 11, 50),
        (_ellipsoid(half, (27, 4, -2), (5.5, 15, 11)), 12, 51),  # putamen
        (_ellipsoid(half, (20, 0, -3), (3.5, 9, 7)), 13, 52),  # pallidum
        (_ellipsoid(half, (22, 2, -22), (7, 7, 7)), 18, 54),  # amygdala
        (_tubes(half, [(24, -8, -22), (29, -26, -14), (24, -38, -3)], (5, 4.5, 3)), 17, 53),  # hippocampus
        (np.maximum(lateral, temporal), 4, 43),
        (_ellipsoid(half, (0, -4, -6), (2.2 * size, 13, 9)), 14, None),  # third ventricle
        (_ellipsoid(half, (0, -28, -38), (6 * size, 5 * size, 10)), 15, None),  # fourth ventricle
    ]


def phantom(
    seed: int | Sequence[int], shape: Sequence[int] = (96, 112, 24), lesion: str | None = None
) -> dict[str, np.ndarray]:
    """Make one subject in memory; with and without a lesion it is the same brain in the same scan.

    Args:
        seed: Seed of the subject, or several numbers that together are the seed.
        shape: Voxels (X, Y, Z), RAS; the field of view stays 168 x 196 x 48 mm.
        lesion: None for a healthy brain; "bright" (on FLAIR and T2, dark on T1) or "dark" (on FLAIR and T1, bright on
            T2).

    Returns:
        "flair", "t1", "t2" (int16, 0 outside of the brain), "seg" (uint8, 1 in the lesion) and "mask" (uint8, 1 in the
        brain), each of ``shape``.
    """
    grid = [((np.arange(n) + 0.5) / n - 0.5) * size for n, size in zip(shape, FIELD_OF_VIEW, strict=True)]
    labels = label_map(seed, grid)
    brain_mask, label = labels > 0, np.zeros(shape, bool)
    tissue = np.select([np.isin(labels, one) for one in (FLUID_LABELS, CORTEX_LABELS, WHITE_LABELS)], [0, 1, 3], 2)
    images, rng = {}, np.random.default_rng([*np.atleast_1d(seed), 2])
    for name, signal in SIGNAL.items():
        image = np.take(signal, tissue).astype(np.float32)
        if lesion is not None:
            image, label = _with_lesion(image, labels, seed, LESIONS[lesion][name])
        image = ndimage.gaussian_filter(image, (0.5, 0.5, 0)) * np.exp(0.07 * _smooth_field(rng, grid, 60.0))
        noise = rng.uniform(0.02, 0.035) * rng.standard_normal((2, *shape))
        measured = rng.uniform(250, 1200) * np.hypot(image + noise[0], noise[1])
        images[name] = (brain_mask * np.maximum(measured, 1)).astype(np.int16)
    return {**images, "seg": label.astype(np.uint8), "mask": brain_mask.astype(np.uint8)}


def _with_lesion(
    image: np.ndarray, labels: np.ndarray, seed: int | Sequence[int], contrast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Add one lesion that the middle slice shows, at the same place for every contrast; give its label too."""
    voxel_mm3 = float(np.prod(FIELD_OF_VIEW / image.shape))
    for attempt in range(100):
        rng = np.random.default_rng([*np.atleast_1d(seed), 1, attempt])
        voxels = np.exp(rng.uniform(*np.log(LESION_ML))) * 1000 / voxel_mm3
        made = add_lesions(image, labels > 0, labels, rng, voxels / 1000, contrast=contrast)
        if made.label[..., image.shape[2] // 2].any():
            break
    return made.image, made.label


def phantom_affine(shape: Sequence[int]) -> np.ndarray:
    """Voxel to scanner coordinates (4, 4) in mm, RAS; 1.75 x 1.75 x 2 mm voxels at the default shape."""
    spacing = FIELD_OF_VIEW / shape
    return nib.affines.from_matvec(np.diag(spacing), CENTER - FIELD_OF_VIEW / 2 + spacing / 2)


def make_phantoms(
    output_dir: str | os.PathLike,
    training: int = 40,
    validation: int = 8,
    testing: int = 24,
    seed: int = 0,
    shape: Sequence[int] = (96, 112, 24),
) -> Path:
    """Write a data set in the folder convention of BraTS: healthy training and validation, a lesion in each test case.

    ``NAME/NAME_flair.nii.gz`` (``_t1``, ``_t2``, ``_seg``, ``_mask``), and ``split_training.txt`` and so on with a name
    a line. A subject depends on ``seed``, its split and its number only.

    Args:
        output_dir: Folder to write, made when missing.
        training: Number of healthy subjects to train on.
        validation: Number of healthy subjects to validate on.
        testing: Number of subjects with a lesion; bright and dark ones take turns.
        seed: Seed of the data set.
        shape: Voxels (X, Y, Z) of each volume.

    Returns:
        ``output_dir``.

    Raises:
        ValueError: When a file is in the way that this function did not write.
        OSError: When ``output_dir`` cannot be written.
    """
    output_dir, affine = check_writable(output_dir), phantom_affine(shape)

    def write(case: tuple[str, int]) -> None:
        split, index = case
        lesion = [*LESIONS][index % len(LESIONS)] if split == "testing" else None
        name = _name(split, index)
        for key, voxels in phantom((seed, SPLITS.index(split), index), shape, lesion).items():
            with atomic(output_dir / name / f"{name}_{key}.nii.gz") as temporary:
                nib.save(nib.Nifti1Image(voxels, affine), temporary)

    numbers = dict(zip(SPLITS, (training, validation, testing), strict=True))
    write_splits(output_dir, {split: [_name(split, k) for k in range(number)] for split, number in numbers.items()})
    cases = [(split, index) for split, number in numbers.items() for index in range(number)]
    thread_map(write, cases, desc="phantoms", unit="subject")
    return output_dir


def _name(split: str, index: int) -> str:
    return f"phantom_{split}_{index:03d}"


def write_splits(output_dir: Path, names: Mapping[str, Sequence[str]]) -> None:
    """Write the names of the cases of each split, one a line, where training and evaluation look for them."""
    for split, cases in names.items():
        write_text(output_dir / f"split_{split}.txt", "".join(f"{case}\n" for case in cases))
