"""Slices of brains made from label maps, to train without a scan: what ``configs/label_maps.json`` asks for."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ..common.share import by_the_first
from ..method.refinement import SCALING
from .label_maps import RandLabelToImaged
from .nifti import load_volume
from .preprocessing import write_slices
from .transforms import ScaleBrainIntensityd

SEEDS_OF_A_HEAD, SEEDS_OF_A_RUN = 1009, 100_003  # primes, so that volumes share no seed
FIRST_HEAD = {"training": 0, "validation": 500, "testing": 2000}  # in the row of seeds of a run


def split_maps(label_maps_dir: str | os.PathLike, validation: int, testing: int = 0) -> dict[str, list[Path]]:
    """Share the label maps of a folder: the last ones are for testing, those before them for validation.

    Args:
        label_maps_dir: Folder with a NIfTI label map for each head.
        validation: Heads to validate on.
        testing: Heads to test on, with lesions.

    Returns:
        The files of each split.

    Raises:
        FileNotFoundError: When there is no such folder.
        ValueError: When no head is left to train on.
    """
    folder = Path(label_maps_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}: set --label_maps_dir to a folder of FreeSurfer label maps.")
    maps = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    training = len(maps) - validation - testing
    if training < 1 or validation < 0 or testing < 0:
        raise ValueError(
            f"{folder} holds {len(maps)} label maps, of which {validation} are to validate and {testing} to test on: "
            "leave at least one to train on."
        )
    ends = (training, training + validation)
    return {"training": maps[: ends[0]], "validation": maps[ends[0] : ends[1]], "testing": maps[ends[1] :]}


def volume_seed(split: str, head: int, draw: int, seed: int) -> int:
    """Give the seed of one volume: no two share one, of whatever split, in runs with ``seed`` 0 to 9.

    This holds up to 110 volumes of each head and 390 heads of each split.

    Args:
        split: "training", "validation" or "testing".
        head: Number of the label map in its split.
        draw: Number of the volume among those of its head.
        seed: Of the run.
    """
    return seed * SEEDS_OF_A_RUN + (FIRST_HEAD[split] + head) * SEEDS_OF_A_HEAD + draw


def make_head(label_map: Path, seed: int, transform: RandLabelToImaged) -> dict[Hashable, Any]:
    """Make the volume of a label map file that this seed draws, see `RandLabelToImaged`."""
    source = load_volume(label_map)
    labels = torch.from_numpy(np.asarray(source.dataobj).astype(np.int16))[None]
    transform.set_random_state(seed)
    return transform({"label_map": MetaTensor(labels, affine=source.affine), "case": label_map.name})


def _made_subject(
    item: Mapping[Hashable, Any], transform: RandLabelToImaged, scale: ScaleBrainIntensityd
) -> dict[str, Any]:
    """A subject of `write_slices`, whose label map becomes a scaled volume (1, X, Y, Z) with its brain mask."""
    made = make_head(Path(item["image"][0]), item["seed"], transform)
    return dict(scale({**item, "image": made["image"], "brain_mask": made["brain_mask"]}))  # type: ignore[arg-type]  # its keys are texts


@by_the_first
def slices_of_label_maps(
    label_maps_dir: str,
    output_dir: str,
    contrast: str = "flair",
    volumes: int = 4,
    validation_heads: int = 2,
    planes: Sequence[str] = ("axial",),
    slice_step: int = 1,
    lower_over_volume: bool = False,
    seed: int = 0,
    num_workers: int | None = None,
) -> str:
    """Make healthy volumes of label maps and write slices of them, as ``configs/preprocess.json`` does of scans.

    Slices of an earlier run are kept where neither a label map nor a setting has changed.

    Args:
        label_maps_dir: Folder with a NIfTI label map for each head, see `RandLabelToImaged`.
        output_dir: Where slices and datalist go.
        contrast: "flair", "t1", "t2" or "any"; also the name of the modality.
        volumes: Of each head, every one drawn anew.
        validation_heads: The last heads, to validate on.
        planes: "axial", "coronal", "sagittal".
        slice_step: Every which slice.
        lower_over_volume: See `ScaleBrainIntensity`.
        seed: Of all that is drawn.
        num_workers: Processes beside this one; None: one for each core.

    Returns:
        ``output_dir``.

    Raises:
        FileNotFoundError: When there is no such folder.
        ValueError: When no head is left for training or validation, or a label map cannot be used.
    """
    heads = split_maps(label_maps_dir, validation_heads)
    if not heads["validation"]:
        raise ValueError("`validation_heads` is 0, but thresholds are measured on these heads: set it to 1 or more.")
    drawn = {"contrast": contrast, "volumes": volumes, "validation_heads": validation_heads, "seed": seed}
    scaling: dict[str, Any] = {**SCALING, "lower_over_volume": lower_over_volume}
    write_slices(
        subjects={split: _subjects(split, heads[split], volumes, seed) for split in ("training", "validation")},
        output_dir=output_dir,
        modalities=[contrast],
        transform=partial(
            _made_subject,
            transform=RandLabelToImaged(contrast=contrast),
            scale=ScaleBrainIntensityd("image", **scaling),
        ),
        settings={**scaling, "certainly_healthy": True, **drawn},
        slice_selection={"training": "healthy", "validation": "healthy"},
        slice_range=None,
        num_workers=num_workers,
        planes=planes,
        slice_step=slice_step,
    )
    return output_dir


def _subjects(split: str, label_maps: Sequence[Path], volumes: int, seed: int) -> list[dict[str, Any]]:
    """For each volume that is to be made its name, its label map under ``image``, and its seed."""
    return [
        {
            "case": f"made_{split}_{head:02d}_{draw}",
            "image": [str(path)],
            "seed": volume_seed(split, head, draw, seed),
        }
        for head, path in enumerate(label_maps)
        for draw in range(volumes)
    ]
