"""The numbers of segmented scans, and two tables of them at the end of a run.

``volumes.csv`` has a row for each scan that is finished in the folder, in whichever run: ``seconds`` is the time from
its image to its results, ``warnings`` how many its record holds, ``model`` the first characters of the SHA-256 of the
model file. ``lesions.csv`` has a row for each connected area of a mask (3-D, 26 neighbors), the largest first, with its
center in the coordinates of the scan's own affine (to the right, to the front, up).

The numbers are those of the mask as it was written: one that a person corrects later is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
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
        The columns of ``lesions.csv`` but for ``case``, for each area.
    """
    wanted = ("area", "centroid", "intensity_mean", "intensity_max")
    found = regionprops_table(label(mask, connectivity=3), anomaly_map, properties=wanted)
    centers = apply_affine(affine, np.stack([found[f"centroid-{axis}"] for axis in range(3)], axis=1))
    rows = []
    for number, area in enumerate(np.argsort(-found["area"], kind="stable"), start=1):
        size, score, peak = (float(found[name][area]) for name in ("area", "intensity_mean", "intensity_max"))
        center = dict(zip(("x_mm", "y_mm", "z_mm"), centers[area].tolist(), strict=True))
        scores = {"mean_score": score, "peak_probability": peak}
        rows.append({"lesion": number, "ml": size * voxel_ml(affine), **center, **scores})
    return rows


def measure_volume(mask: MetaTensor, anomaly_map: MetaTensor, brain_mask: MetaTensor) -> Numbers:
    """Measure one segmented volume.

    Args:
        mask: Marked voxels (1, H, W, D), in the grid of the scan.
        anomaly_map: Their scores (1, H, W, D).
        brain_mask: Brain voxels (1, X, Y, Z), in a grid of its own.

    Returns:
        The columns of ``volumes.csv`` that a volume gives, but in ``lesions`` what `measure_lesions` gives.
    """
    marked, scores, brain = (image.as_tensor()[0].cpu().numpy() for image in (mask, anomaly_map, brain_mask))
    affine, brain_affine = (image.affine.cpu().double().numpy() for image in (mask, brain_mask))
    number = int(np.count_nonzero(marked))
    return {
        "marked_voxels": number,
        "marked_ml": number * voxel_ml(affine),
        "lesions": measure_lesions(marked > 0, scores, affine),
        "brain_ml": int(np.count_nonzero(brain)) * voxel_ml(brain_affine),
    }


def rows_of(record: Mapping[str, Any]) -> tuple[Numbers, list[Numbers]] | None:
    """The row of a scan in ``volumes.csv`` and its rows in ``lesions.csv``, by its record.

    None where the record does not tell them all: the scan is at work, or a person changed the record.
    """
    try:
        lesions = record["numbers"]["lesions"]
        volume = {
            **record["numbers"],
            "case": record["case"],
            "lesions": len(lesions),
            "warnings": len(record["warnings"]),
            "threshold_scale": record.get("threshold_scale"),
            "model": record["model_sha256"][:HASH_LENGTH],
        }
        rows = [_row({"case": record["case"], **lesion}, LESION_COLUMNS) for lesion in lesions]
        return _row(volume, VOLUME_COLUMNS), rows
    except (KeyError, TypeError):
        return None


def _row(values: Numbers, columns: Sequence[str]) -> Numbers:
    row = {column: values[column] for column in columns}
    return {column: format(value, ".6g") if isinstance(value, float) else value for column, value in row.items()}


def write_tables(output_dir: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``volumes.csv`` and ``lesions.csv``, atomically.

    Args:
        output_dir: It exists.
        records: Those of all scans; without a finished one an earlier table becomes empty, and none is made.
    """
    folder, finished = Path(output_dir), [rows for record in records if (rows := rows_of(record))]
    if finished or os.path.lexists(folder / VOLUMES):
        write_csv(folder / LESIONS, LESION_COLUMNS, [lesion for _, lesions in finished for lesion in lesions])
        write_csv(folder / VOLUMES, VOLUME_COLUMNS, [volume for volume, _ in finished])
