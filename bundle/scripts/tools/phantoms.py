"""Seeded brain phantoms in FLAIR, T1 and T2: healthy ones to train on, ones with a lesion to test on.

Anatomy is drawn from distance functions in millimeters, so the same seed is the same brain at any resolution.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ..common.outputs import atomic, check_outputs, check_writable, write_csv, write_text
from ..data.nifti import load_volume

VERSION = 4  # of the drawing; raise it when the same seed gives other voxels
MODALITIES = ("flair", "t1", "t2")
LESIONS = ("bright", "dark", "texture")
SPLITS = ("training", "validation", "testing")
COLUMNS = ("case", "split", "kind", "contrast", "lesion_voxels", "lesion_ml")

FIELD_OF_VIEW = np.array([168.0, 196.0, 48.0])  # mm; a slab of axial slices through the ventricles
CENTER = np.array([1.5, -17.0, 14.0])  # mm; scanner coordinates of the center of the slab

# Signal of cerebrospinal fluid, grey matter, deep grey matter and white matter.
SIGNAL = {
    "flair": (0.18, 0.92, 0.85, 0.70),
    "t1": (0.20, 0.62, 0.72, 1.00),
    "t2": (1.65, 0.90, 0.80, 0.62),
}
# Signal of a lesion of contrast 0 (as grey or white matter) and of contrast 1.
LESION_SIGNAL = {
    "bright": {"flair": (0.85, 1.60), "t1": (0.70, 0.40), "t2": (0.80, 1.50)},
    "dark": {"flair": (0.75, 0.25), "t1": (0.75, 0.25), "t2": (0.80, 1.30)},
}


class Anatomy(NamedTuple):
    """Fractions in [0, 1] of a brain's voxels (X, Y, Z), and where its outline is."""

    tissues: np.ndarray  # (4, X, Y, Z), in the order of SIGNAL; they sum to 1
    brain: np.ndarray  # part of the voxel within the outline


def phantom(
    seed: int | Sequence[int],
    shape: Sequence[int] = (96, 112, 24),
    lesion: str | None = None,
    contrast: float = 0.8,
    radius: float | None = None,
) -> dict[str, np.ndarray]:
    """Make one subject in memory; with and without a lesion it is the same brain in the same scan.

    Args:
        seed: Seed of the subject, or several numbers that together are the seed.
        shape: Voxels (X, Y, Z), RAS; the field of view stays 168 x 196 x 48 mm.
        lesion: None for a healthy brain; "bright" (on FLAIR and T2, dark on T1), "dark" (on FLAIR and T1, bright on
            T2) or "texture" (mean of what it replaces, so that no threshold sees it, but speckled instead of folded).
        contrast: Strength of the lesion in (0, 1].
        radius: Of the lesion in mm, up to 40; None: drawn between 12 and 26.

    Returns:
        "flair", "t1", "t2" (int16, 0 outside of the brain), "seg" (uint8, 1 in the lesion), "mask" (uint8, 1 in the
        brain) and "tissue" (uint8: 0 outside, 1 fluid, 2 cortex, 3 deep grey matter, 4 white matter; before the
        lesion), each of ``shape``.

    Raises:
        ValueError: When ``lesion``, ``contrast`` or ``shape`` is not one of those.
    """
    _check(shape, lesion, contrast)
    if radius is not None and not 0 < radius <= 40:
        raise ValueError(f"`radius` must be in (0, 40] mm, got {radius}.")
    grid = _grid(shape)
    anatomy = _anatomy(_random(seed, 0), grid)
    brain_mask = anatomy.brain > 0.5
    subject = {
        "seg": np.zeros(shape, np.uint8),
        "mask": brain_mask.astype(np.uint8),
        "tissue": ((1 + anatomy.tissues.argmax(axis=0)) * brain_mask).astype(np.uint8),
    }
    signals = {name: np.einsum("t,txyz->xyz", SIGNAL[name], anatomy.tissues) for name in MODALITIES}
    if lesion is not None:
        rng = _random(seed, 1)
        weight = _lesion_weight(rng, grid, radius) * anatomy.brain
        subject["seg"] = ((weight > 0.5) & brain_mask).astype(np.uint8)
        speckle = _speckle(rng, grid)
        signals = {
            name: _with_lesion(signal, name, weight, speckle, lesion, contrast) for name, signal in signals.items()
        }
    rng = _random(seed, 2)
    return {name: _scan(rng, grid, signal, brain_mask) for name, signal in signals.items()} | subject


def make_phantoms(
    output_dir: str | os.PathLike,
    training: int = 40,
    validation: int = 8,
    testing: int = 24,
    seed: int = 0,
    shape: Sequence[int] = (96, 112, 24),
    num_workers: int = 0,
) -> Path:
    """Write a data set in the folder convention of BraTS: healthy training and validation, a lesion in each test case.

    ``NAME/NAME_flair.nii.gz`` (``_t1``, ``_t2``, ``_seg``, ``_mask``), ``split_training.txt`` and so on with a name a
    line, and ``phantoms.csv``. A subject depends on ``seed``, its split and its number only, and is kept when it is
    there already with the same ``seed`` and ``shape``.

    Args:
        output_dir: Folder to write, made when missing.
        training: Number of healthy subjects to train on.
        validation: Number of healthy subjects to validate on.
        testing: Number of subjects with a lesion; "bright", "dark" and "texture" take turns.
        seed: Seed of the data set.
        shape: Voxels (X, Y, Z) of each volume.
        num_workers: Threads to write with; 0 writes without any.

    Returns:
        ``output_dir``.

    Raises:
        ValueError: When a number is negative, ``shape`` is not three positive numbers, or a file is in the way that
            this function did not write.
        OSError: When ``output_dir`` cannot be written.
    """
    _check(shape)
    numbers = dict(zip(SPLITS, (training, validation, testing), strict=True))
    for name, number in (numbers | {"seed": seed, "num_workers": num_workers}).items():
        if number < 0:
            raise ValueError(f"`{name}` must be 0 or more, got {number}.")
    output_dir = check_writable(output_dir)
    cases = [(split, index) for split in SPLITS for index in range(numbers[split])]
    tables = ["phantoms.csv", *(f"split_{split}.txt" for split in SPLITS)]
    check_outputs(output_dir / table for table in tables)
    check_outputs(path for case in cases for path in _paths(output_dir, _name(*case)).values())
    write = partial(_write_case, output_dir, seed, tuple(shape))
    bar = partial(tqdm, total=len(cases), desc="phantoms", unit="subject")
    if num_workers:
        with ThreadPoolExecutor(num_workers) as pool:
            rows = list(bar(pool.map(write, cases)))
    else:
        rows = list(bar(map(write, cases)))
    write_tables(output_dir, "phantoms", COLUMNS, rows, SPLITS)
    return output_dir


def phantom_affine(shape: Sequence[int]) -> np.ndarray:
    """Voxel to scanner coordinates (4, 4) in mm, RAS; 1.75 x 1.75 x 2 mm voxels at the default shape."""
    spacing = FIELD_OF_VIEW / shape
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTER - FIELD_OF_VIEW / 2 + spacing / 2
    return affine


def _check(shape: Sequence[int], lesion: str | None = None, contrast: float = 1.0) -> None:
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"`shape` must be three numbers of voxels (X, Y, Z), each 2 or more, got {tuple(shape)}.")
    if lesion is not None and lesion not in LESIONS:
        raise ValueError(f"`lesion` must be None or one of {', '.join(LESIONS)}, got {lesion!r}.")
    if not 0 < contrast <= 1:
        raise ValueError(f"`contrast` must be in (0, 1], got {contrast}.")


def _random(seed: int | Sequence[int], stream: int) -> np.random.Generator:
    """Independent numbers for anatomy (0), lesion (1), scan (2) and choice of lesion (3) of one subject."""
    return np.random.default_rng([*np.atleast_1d(seed), stream])


def _grid(shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Voxel centers along each axis in mm from the center of the field of view."""
    return tuple(((np.arange(n) + 0.5) / n - 0.5) * size for n, size in zip(shape, FIELD_OF_VIEW, strict=True))


def _field(rng: np.random.Generator, grid: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """Smooth Gaussian random field with mean 0, variance 1 and correlation length ``scale`` (mm), on any grid."""
    reach = FIELD_OF_VIEW / 2 + 3 * scale
    knots = [np.arange(-extent, extent + scale, scale) for extent in reach]
    field = rng.standard_normal([len(axis) for axis in knots])
    # The last axis first, while the field is small. No matrix product: its threads are slow on arrays this small.
    for points, axis, product in zip(
        grid[::-1], knots[::-1], ("xyc,kc->xyk", "xbk,jb->xjk", "ajk,ia->ijk"), strict=True
    ):
        basis = np.exp(-(((points[:, None] - axis) / scale) ** 2))
        field = np.einsum(product, field, basis / np.linalg.norm(basis, axis=1, keepdims=True))
    return field


def _soft(depth: np.ndarray, width: float) -> np.ndarray:
    """Part of a voxel of ``width`` that lies within a surface, from the depth (mm) of its center under it."""
    return np.clip(depth / width + 0.5, 0, 1)


def _anatomy(rng: np.random.Generator, grid: Sequence[np.ndarray]) -> Anatomy:
    """Draw a brain: outline, folded cortex over white matter, deep grey matter and ventricles."""
    width = np.diff(grid[0][:2])[0]
    points = _warped(rng, grid)
    radii = np.array([68.0, 84.0, 62.0]) * rng.uniform(0.94, 1.04, 3)
    radius = np.sqrt(sum((p / r) ** 2 for p, r in zip(points, radii, strict=True))) + 1e-6
    depth = (1 - radius) * radii[:2].mean()
    pial = _pial_distance(rng, grid, points, radius, depth)
    fluid = 1 - _soft(pial - rng.uniform(0.5, 1.2), width)
    white = _soft(pial - rng.uniform(3.8, 4.6), width)
    nuclei, ventricles = _deep_structures(rng, points)
    ventricles = _soft(ventricles, width)
    nuclei = np.minimum(_soft(nuclei, width), 1 - ventricles)
    fluid = np.maximum(fluid, ventricles)
    white = np.minimum(white, 1 - fluid)
    nuclei = np.minimum(nuclei, white)
    tissues = np.stack([fluid, 1 - fluid - white, nuclei, white - nuclei])
    return Anatomy(tissues, _soft(depth, width))


def _warped(rng: np.random.Generator, grid: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Coordinates (mm) of each voxel in the brain's own frame: turned a little and bent smoothly."""
    angle = np.deg2rad(rng.normal(0, 3))
    x, y, z = np.meshgrid(*grid, indexing="ij")
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return [
        axis + 2.0 * _field(rng, grid, 30.0) + 1.3 * _field(rng, grid, 12.0) for axis in (x, y, z + rng.uniform(-4, 4))
    ]


def _pial_distance(
    rng: np.random.Generator,
    grid: Sequence[np.ndarray],
    points: Sequence[np.ndarray],
    radius: np.ndarray,
    depth: np.ndarray,
) -> np.ndarray:
    """Distance (mm) to the folded surface of the brain: outline, sulci, Sylvian fissures and the cleft in the middle.

    Sulci are the zero level set of a random field. It is read at points pushed out towards the outline, which makes
    it vary along the surface more than in depth, so that sulci run inwards.
    """
    knots = [np.arange(-extent, extent + 3, 3.0) for extent in (96, 110, 72)]
    field = _field(rng, knots, 5.5)
    slope = np.sqrt(sum(g**2 for g in np.gradient(field, 3.0)))
    signed = field / (slope + 0.2 * slope.mean())
    push = (0.5 + 0.5 * radius) / radius
    indices = [(p * push - axis[0]) / 3.0 for p, axis in zip(points, knots, strict=True)]
    sulcus = np.abs(ndimage.map_coordinates(signed, indices, order=1, mode="nearest"))
    reach = 22.0 + 6.0 * _field(rng, grid, 14.0)
    sulcus = np.hypot(sulcus, np.maximum(depth - reach, 0))
    x, y, z = points
    bridge = np.sqrt(np.maximum(1 - (z / 26.0) ** 2, 0)) * 46.0 - np.abs(y + 6.0)  # corpus callosum
    cleft = np.hypot(x, np.maximum(bridge, 0))
    lateral = (np.abs(x), y, 0.3 * z)  # flattened, which makes sheets of tubes
    fissure = _tube(lateral, (68.0, -8.0, 0.0), (44.0, 4.0, -1.0), 0.0, 0.0)
    insula = _tube(lateral, (42.0, -18.0, 0.0), (40.0, 20.0, -1.0), 0.0, 0.0)
    return np.min([depth, sulcus, cleft, -fissure, -insula], axis=0)


def _deep_structures(rng: np.random.Generator, points: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Depth (mm, negative outside) under the surfaces of the deep grey nuclei and of the ventricles."""
    x, y, z = points
    side = np.abs(x)
    size = rng.uniform(0.75, 1.35)
    horns = [(5.0, 32.0, 0.0), (8.0, 12.0, 8.0), (13.0, -20.0, 8.0), (23.0, -36.0, 0.0), (20.0, -52.0, -4.0)]
    widths = (3.5, 4.5, 5.0, 5.5, 3.0)
    lateral = [
        _tube((side, y, z), start, end, size * widths[i], size * widths[i + 1])
        for i, (start, end) in enumerate(zip(horns, horns[1:], strict=False))
    ]
    third = _ellipsoid((side, y, z), (0.0, -4.0, -6.0), (2.2 * size, 13.0, 9.0))
    nuclei = [
        _ellipsoid((side, y, z), (11.0, -10.0, 1.0), (8.5, 14.0, 10.0)),  # thalamus
        _ellipsoid((side, y, z), (15.0, 20.0, 3.0), (5.5, 10.0, 12.0)),  # caudate
        _ellipsoid((side, y, z), (28.0, 4.0, -2.0), (5.5, 16.0, 12.0)),  # putamen
    ]
    return np.max(nuclei, axis=0), np.max([*lateral, third], axis=0)


def _tube(
    points: Sequence[np.ndarray],
    start: Sequence[float],
    end: Sequence[float],
    start_width: float,
    end_width: float,
) -> np.ndarray:
    """Depth (mm) in a round tube between two points whose radius goes from one width to the other."""
    axis = np.subtract(end, start)
    along = sum((p - s) * a for p, s, a in zip(points, start, axis, strict=True)) / (axis @ axis)
    along = np.clip(along, 0, 1)
    squares = sum((p - s - along * a) ** 2 for p, s, a in zip(points, start, axis, strict=True))
    return start_width + (end_width - start_width) * along - np.sqrt(squares)


def _ellipsoid(points: Sequence[np.ndarray], center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Depth (mm, about) in an ellipsoid."""
    radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(points, center, radii, strict=True)))
    return (1 - radius) * min(radii)


def _lesion_weight(rng: np.random.Generator, grid: Sequence[np.ndarray], radius: float | None = None) -> np.ndarray:
    """Part of each voxel in an irregular lesion, by default 12 to 26 mm in radius, that meets the central slices."""
    drawn = rng.uniform(12, 26)
    radius = drawn if radius is None else radius
    angle = rng.uniform(0, 2 * np.pi)
    reach = rng.uniform(0.25, min(0.62, 1 - 0.75 * radius / 62))
    center = reach * np.array([62 * np.cos(angle), 76 * np.sin(angle), 0]) + [0, 0, rng.uniform(-7, 7)]
    stretch = rng.uniform(0.85, 1.2, 3)
    x, y, z = ((axis - c) / s for axis, c, s in zip(np.meshgrid(*grid, indexing="ij"), center, stretch, strict=True))
    distance = np.sqrt(x**2 + y**2 + z**2)
    bumps = 0.16 * _field(rng, grid, 0.6 * radius) + 0.10 * _field(rng, grid, 0.3 * radius)
    return _soft(radius * (1 + np.clip(bumps, -0.4, 0.4)) - distance, np.diff(grid[0][:2])[0])


def _speckle(rng: np.random.Generator, grid: Sequence[np.ndarray]) -> np.ndarray:
    """Blotchy texture (mean 0, variance 1, within 2) of 6 mm grain, about as coarse as the folds of the cortex."""
    return np.clip(_field(rng, grid, 6.0), -2, 2)


def _with_lesion(
    signal: np.ndarray, name: str, weight: np.ndarray, speckle: np.ndarray, lesion: str, contrast: float
) -> np.ndarray:
    """Put a lesion into the noise-free signal of one modality, where ``weight`` (X, Y, Z) is above 0.

    A texture swings between the signals of healthy tissue about the mean of what it replaces.
    """
    if not weight.any():
        return signal
    mean = np.average(signal, weights=weight)
    if lesion == "texture":
        tissue = np.clip(mean + contrast * signal.std() * speckle, min(SIGNAL[name]), max(SIGNAL[name][1:]))
        tissue += mean - np.average(tissue, weights=weight)
    else:
        start, end = LESION_SIGNAL[lesion][name]
        tissue = start + contrast * (end - start) + 0.15 * (signal - mean) + 0.03 * speckle
    return signal + weight * (np.maximum(tissue, 0.05) - signal)


def _scan(
    rng: np.random.Generator, grid: Sequence[np.ndarray], signal: np.ndarray, brain_mask: np.ndarray
) -> np.ndarray:
    """Measure a signal: bias field, noise and a gain that differ from scan to scan; int16, 0 outside of the brain."""
    bias = np.exp(0.07 * _field(rng, grid, 60.0))
    noise = rng.uniform(0.02, 0.035) * rng.standard_normal((2, *signal.shape))
    measured = np.hypot(signal * bias + noise[0], noise[1])
    return (brain_mask * np.maximum(rng.uniform(250, 1200) * measured, 1)).astype(np.int16)


def _name(split: str, index: int) -> str:
    return f"phantom_{split}_{index:03d}"


def _paths(output_dir: Path, name: str) -> dict[str, Path]:
    return {key: output_dir / name / f"{name}_{key}.nii.gz" for key in (*MODALITIES, "seg", "mask")}


def _write_case(output_dir: Path, seed: int, shape: tuple[int, ...], case: tuple[str, int]) -> dict[str, object]:
    """Write the files of one subject unless they are there, and return its line of ``phantoms.csv``."""
    split, index = case
    name = _name(split, index)
    subject_seed = (seed, SPLITS.index(split), index)
    lesion = LESIONS[index % len(LESIONS)] if split == "testing" else None
    contrast = round(_random(subject_seed, 3).uniform(0.75, 1.0), 3)
    settings = f"phantom {VERSION}, seed {seed}, {'x'.join(map(str, shape))}"
    paths = _paths(output_dir, name)
    if not _is_written([*paths.values()], settings):
        volumes = phantom(subject_seed, shape, lesion, contrast)
        for key, path in paths.items():
            _save(path, volumes[key], settings)
    voxels = int(np.count_nonzero(load_volume(paths["seg"]).dataobj))
    return {
        "case": name,
        "split": split,
        "kind": lesion or "healthy",
        "contrast": contrast if lesion else "",
        "lesion_voxels": voxels,
        "lesion_ml": round(voxels * float(np.prod(FIELD_OF_VIEW / shape)) / 1000, 3),
    }


def _save(path: Path, volume: np.ndarray, settings: str) -> None:
    """Write one volume; ``settings`` go into the header, where a later run reads them."""
    image = nib.Nifti1Image(volume, phantom_affine(volume.shape))
    image.header["descrip"] = settings
    image.header.set_xyzt_units("mm")
    with atomic(path) as temporary:
        nib.save(image, temporary)


def _is_written(paths: Sequence[Path], settings: str) -> bool:
    """Whether all files of a subject are there, whole and of the same settings."""
    try:
        images = [nib.Nifti1Image.from_filename(path) for path in paths]
        for image in images:
            np.asarray(image.dataobj)  # fails where a file was cut short
    except (OSError, EOFError, zlib.error, nib.filebasedimages.ImageFileError):
        return False
    return all(image.header["descrip"].item().decode() == settings for image in images)


def write_tables(
    output_dir: Path, name: str, columns: Sequence[str], rows: Sequence[dict[str, object]], splits: Sequence[str]
) -> None:
    """Write a file of case names for each split, and the table ``NAME.csv`` of all cases."""
    for split in splits:
        write_text(
            output_dir / f"split_{split}.txt", "".join(f"{row['case']}\n" for row in rows if row["split"] == split)
        )
    write_csv(output_dir / f"{name}.csv", columns, rows)
