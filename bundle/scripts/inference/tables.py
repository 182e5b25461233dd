"""The numbers of segmented scans, and two tables of them at the end of a run.

``volumes.csv`` has a row for each scan that is finished: ``case``; ``marked_voxels`` and ``marked_ml``; ``lesions``,
the number of connected areas (3-D, 26 neighbors); ``brain_ml``; ``seconds`` that the run
took for it, while it read the scan after it; ``warnings``, how many its record holds; ``threshold_scale``; ``model``,
the first 12 characters of the SHA-256 of the model file.

``lesions.csv`` has a row for each connected area: ``case``; ``lesion``, its number, the largest being 1; ``ml``;
``x_mm``, ``y_mm`` and ``z_mm``, its center in the coordinates of the scan's own affine (to the right, to the front,
up); ``mean_score`` and ``peak_probability``, mean and maximum of the anomaly map in it.

Both tell of all scans that are finished in the folder, in whichever runs.

The numbers are those of the mask as it was written: one that a person corrects later is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from skimage.measure import label, regionprops_table

from ..common.outputs import write_csv
from ..data.nifti import voxel_ml

VOLUMES, LESIONS = "volumes.csv", "lesions.csv"
VOLUME_COLUMNS = (
    "case",
    "marked_voxels",
    "marked_ml",
    "lesions",
    "brain_ml",
    "seconds",
    "warnings",
    "threshold_scale",
    "model",
)
LESION_COLUMNS = ("case", "lesion", "ml", "x_mm", "y_mm", "z_mm", "mean_score", "peak_probability")
HASH_LENGTH = 12

Numbers = dict[str, Any]


def measure_lesions(mask: np.ndarray, anomaly_map: np.ndarray, affine: np.ndarray) -> list[Numbers]:
    """Measure the connected areas of a mask (26 neighbors), the largest first.

    Args:
        mask: Marked voxels (H, W, D), bool.
        anomaly_map: Their scores (H, W, D).
        affine: From voxels to mm (4, 4).

    Returns:
        For each area ``ml``, ``center_mm`` [x, y, z], ``mean_score`` and ``peak_probability``.
    """
    wanted = ("area", "centroid", "intensity_mean", "intensity_max")
    found = regionprops_table(label(mask, connectivity=3), anomaly_map, properties=wanted)
    centers = apply_affine(affine, np.stack([found[f"centroid-{axis}"] for axis in range(3)], axis=1))
    return [
        {
            "ml": float(found["area"][lesion] * voxel_ml(affine)),
            "center_mm": centers[lesion].tolist(),
            "mean_score": float(found["intensity_mean"][lesion]),
            "peak_probability": float(found["intensity_max"][lesion]),
        }
        for lesion in np.argsort(-found["area"], kind="stable")
    ]


def measure_volume(
    mask: np.ndarray,
    anomaly_map: np.ndarray,
    affine: np.ndarray,
    brain_mask: np.ndarray,
    brain_affine: np.ndarray,
) -> Numbers:
    """Measure one segmented volume.

    Args:
        mask: Marked voxels (H, W, D), bool, in the grid of the scan.
        anomaly_map: Their scores (H, W, D).
        affine: Of the scan, from voxels to mm (4, 4).
        brain_mask: Brain voxels in RAS order (X, Y, Z), bool.
        brain_affine: Of the brain mask (4, 4).

    Returns:
        The columns of ``volumes.csv`` that a volume gives, but in ``lesions`` what `measure_lesions` gives.
    """
    number = int(np.count_nonzero(mask))
    return {
        "marked_voxels": number,
        "marked_ml": number * voxel_ml(affine),
        "lesions": measure_lesions(mask, anomaly_map, affine),
        "brain_ml": int(np.count_nonzero(brain_mask)) * voxel_ml(brain_affine),
    }


def volume_row(record: Mapping[str, Any]) -> Numbers:
    """The row of a scan in ``volumes.csv``, of its record."""
    numbers = record["numbers"]
    own = {
        "threshold_scale": record.get("threshold_scale"),
        "case": record["case"],
        "lesions": len(numbers["lesions"]),
        "warnings": len(record["warnings"]),
        "model": record["model_sha256"][:HASH_LENGTH],
    }
    return {column: _short({**numbers, **own}[column]) for column in VOLUME_COLUMNS}


def lesion_rows(record: Mapping[str, Any]) -> list[Numbers]:
    """The rows of a scan in ``lesions.csv``, of its record."""
    rows = [
        (record["case"], number, lesion["ml"], *lesion["center_mm"], lesion["mean_score"], lesion["peak_probability"])
        for number, lesion in enumerate(record["numbers"]["lesions"], start=1)
    ]
    return [dict(zip(LESION_COLUMNS, map(_short, row), strict=True)) for row in rows]


def is_measured(record: Mapping[str, Any]) -> bool:
    """Whether a record has all that the tables tell of a scan: it is not while the scan is at work."""
    try:
        return bool(volume_row(record)) and lesion_rows(record) is not None
    except (KeyError, TypeError, ValueError):
        return False


def _short(value: object) -> object:
    return format(value, ".6g") if isinstance(value, float) else value


def write_tables(output_dir: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``volumes.csv`` and ``lesions.csv``, atomically.

    Args:
        output_dir: It exists.
        records: Those of all scans; without a finished one an earlier table becomes empty, and none is made.
    """
    folder, finished = Path(output_dir), [record for record in records if is_measured(record)]
    if finished or os.path.lexists(folder / VOLUMES):
        write_csv(folder / LESIONS, LESION_COLUMNS, [row for record in finished for row in lesion_rows(record)])
        write_csv(folder / VOLUMES, VOLUME_COLUMNS, map(volume_row, finished))
