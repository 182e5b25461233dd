"""Scans painted from FreeSurfer label maps: ``python bundle/scripts/tools/synthetic_heads.py --label_maps_dir MAPS``.

Anyone with label maps can train and test without a single scan. The scans that are for testing have lesions. The folder
follows the convention of BraTS, so every step of the bundle reads it (with ``--brain_mask brain``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import atomic, check_outputs, check_writable  # noqa: E402
from scripts.data.dataset import split_maps, volume_seed  # noqa: E402
from scripts.data.label_maps import CONTRASTS, Limits, RandLabelToImaged, make_head  # noqa: E402
from scripts.data.made_lesions import PLACES, MadeLesions, add_lesions  # noqa: E402
from scripts.tools.phantoms import write_tables  # noqa: E402

GRAY_LEVELS = 500  # of white matter
SMALLEST_ML, LARGEST_ML = 1.0, 100.0
MOST_LESIONS = 15
CONTRAST = (1.5, 6.0)  # deviations of white matter
LARGEST_ANGLE, LARGEST_SHIFT = 5.0, 5.0  # degrees about each axis, and mm along it, between scans of a head
ROOM = 16  # mm around a head that moves
RESCAN_NOISE = 0.04  # standard deviation, in parts of white matter
COLUMNS = ("case", "split", "label_map", "lesion_ml", "contrast", "lesions")


class Case(NamedTuple):
    """One volume to make; lesions are for testing alone."""

    name: str
    split: str
    label_map: Path
    seed: int


def with_lesions(
    image: np.ndarray,
    brain_mask: np.ndarray,
    labels: np.ndarray,
    random: np.random.Generator,
    contrasts: Sequence[float] = CONTRAST,
) -> tuple[MadeLesions, float, int]:
    """Add lesions of a drawn size, number, place and contrast to a volume (X, Y, Z); give contrast and number too."""
    number = int(random.integers(1, MOST_LESIONS + 1))
    contrast = float(random.uniform(contrasts[0], contrasts[1]))
    volume_ml = float(np.exp(random.uniform(np.log(SMALLEST_ML), np.log(LARGEST_ML))))
    made = add_lesions(image, brain_mask, labels, random, volume_ml, number, contrast, PLACES)
    return made, contrast, number


def rescan(arrays: Mapping[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Scan a head (X, Y, Z) once more: ``image`` turned, shifted and with noise of its own, the masks with it.

    Args:
        arrays: ``image``, in parts of white matter and without noise, and masks, bool.
        random: Draws angles up to `LARGEST_ANGLE` degrees, shifts up to `LARGEST_SHIFT` mm, and the noise.
    """
    angles, shift = random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, 3), random.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 3)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    padded = {key: np.pad(array, ROOM) for key, array in arrays.items()}
    center = (np.array(padded["image"].shape) - 1) / 2
    offset = center - turn @ (center + shift)
    moved = {
        key: ndimage.affine_transform(array.astype(np.float32), turn, offset, order=1) for key, array in padded.items()
    }
    noise = random.normal(0, RESCAN_NOISE, (2, *moved["image"].shape))
    image = np.hypot(moved["image"] + noise[0], noise[1]) * (moved["image"] > 0)
    return {key: image.astype(np.float32) if key == "image" else moved[key] > 0.5 for key in arrays}


def write_case(
    case: Case,
    output_dir: Path,
    transform: RandLabelToImaged,
    contrasts: Sequence[float] = CONTRAST,
    rescans: int = 0,
) -> list[dict[str, object]]:
    """Write the files of one volume, ``NAME/NAME_<contrast>``, ``_seg`` and ``_brain``, and return its table rows.

    With ``rescans`` a volume with lesions becomes as many, ``NAME_scan1`` and so on, see `rescan`.
    """
    made = make_head(case.label_map, case.seed, transform)
    image, brain_mask, labels = (made[key][0].numpy() for key in ("image", "brain_mask", "label_map"))
    lesion, contrast, number = np.zeros(image.shape, bool), 0.0, 0
    if case.split == "testing":
        result, contrast, number = with_lesions(image, brain_mask, labels, np.random.default_rng(case.seed), contrasts)
        image, lesion = np.where(brain_mask | transform.skull, result.image, 0), result.label
    arrays, affine = {"image": image, "seg": lesion, "brain": brain_mask}, made["image"].affine.numpy()
    if case.split != "testing" or not rescans:
        return [_write_volume(case, case.name, arrays, affine, transform, contrast, number, output_dir)]
    random = np.random.default_rng([case.seed, 1])
    return [
        _write_volume(
            case, f"{case.name}_scan{scan}", rescan(arrays, random), affine, transform, contrast, number, output_dir
        )
        for scan in range(1, rescans + 1)
    ]


def _write_volume(
    case: Case,
    name: str,
    arrays: Mapping[str, np.ndarray],
    affine: np.ndarray,
    transform: RandLabelToImaged,
    contrast: float,
    number: int,
    output_dir: Path,
) -> dict[str, object]:
    levels = np.clip(np.round(arrays["image"] * GRAY_LEVELS), 0, np.iinfo(np.int16).max).astype(np.int16)
    levels = np.where(arrays["brain"], np.maximum(levels, 1), levels if transform.skull else 0)
    masks = {key: arrays[key].astype(np.uint8) for key in ("seg", "brain")}
    for key, volume in {transform.contrast: levels, **masks}.items():
        output = nib.Nifti1Image(volume, affine)
        output.header.set_xyzt_units("mm")
        with atomic(output_dir / name / f"{name}_{key}.nii.gz") as temporary:
            nib.save(output, temporary)
    ml = round(float(arrays["seg"].sum()) / 1000, 3)
    return dict(zip(COLUMNS, (name, case.split, case.label_map.name, ml, round(contrast, 2), number), strict=True))


def _names(case: Case, rescans: int) -> list[str]:
    scans = rescans if case.split == "testing" else 0
    return [f"{case.name}_scan{scan}" for scan in range(1, scans + 1)] or [case.name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make volumes of all label maps of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--label_maps_dir", required=True, help="FreeSurfer label maps (NIfTI, 1 mm), one for each head"
    )
    parser.add_argument("--output_dir", default="synthetic_heads", help="where to write (default: ./synthetic_heads)")
    parser.add_argument("--contrast", choices=CONTRASTS, default="flair", help="of the scans (default: flair)")
    parser.add_argument("--volumes", type=int, default=4, help="of each head, every one drawn anew (default: 4)")
    parser.add_argument("--validation", type=int, default=2, help="heads to validate on (default: 2)")
    parser.add_argument("--testing", type=int, default=4, help="heads to test on, with lesions (default: 4)")
    parser.add_argument(
        "--lesion_contrast",
        type=float,
        nargs=2,
        default=CONTRAST,
        metavar=("LOW", "HIGH"),
        help="of the lesions, in deviations of white matter (default: 1.5 6)",
    )
    parser.add_argument(
        "--rescans", type=int, default=0, help="scan each head to test on so many times, moved and noisy anew"
    )
    parser.add_argument("--skull", action="store_true", help="keep the skull, for tests of brain extraction")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    options = parser.parse_args(arguments)
    report_errors()
    low, high = options.lesion_contrast
    if not 0 < low <= high:
        raise ValueError(f"--lesion_contrast must be LOW HIGH with 0 < LOW <= HIGH, got {low:g} {high:g}.")
    heads = split_maps(options.label_maps_dir, options.validation, options.testing)
    output = check_writable(options.output_dir)
    cases = [
        Case(f"synthetic_{split}_{head:02d}_{draw}", split, path, volume_seed(split, head, draw, options.seed))
        for split, paths in heads.items()
        for head, path in enumerate(paths)
        for draw in range(options.volumes)
    ]
    tables = ["synthetic_heads.csv", *(f"split_{split}.txt" for split in heads)]
    make = partial(RandLabelToImaged, contrast=options.contrast, skull=options.skull)
    transform = make(limits=Limits(noise=(0.0, 0.0))) if options.rescans else make()  # each scan has noise of its own
    names = [name for case in cases for name in _names(case, options.rescans)]
    check_outputs(output / table for table in tables)
    check_outputs(
        output / name / f"{name}_{key}.nii.gz" for name in names for key in (options.contrast, "seg", "brain")
    )
    progress = tqdm(cases, desc="synthetic heads", unit="volume")
    rows = [row for case in progress for row in write_case(case, output, transform, (low, high), options.rescans)]
    write_tables(output, "synthetic_heads", COLUMNS, rows, list(heads))
    print(f"Scans, brain masks (ending brain) and split files: {output}")


if __name__ == "__main__":
    main()
