"""Finding the scans that are to be scored, with their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..common.batch import shown_list
from ..data.nifti import load_volume, voxel_ml
from ..data.scans import Subject, find_subjects, mark_unusable


def find_labeled(
    dataset_dir: str,
    modalities: Sequence[str],
    split: str | Sequence[str] | None = None,
    label: str = "seg",
    brain_mask: str | None = None,
    slice_range: Sequence[int] | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
    unlabeled_are_healthy: bool = False,
) -> list[Subject]:
    """List the scans of a folder to be scored, see `find_subjects`, and check their headers.

    Scans without a label are healthy on request. Otherwise they are left out of a folder and told, or marked as
    unusable where ``split`` names them.

    Args:
        dataset_dir: As in `find_subjects`, like all that is not explained here.
        modalities: Likewise.
        split: Likewise.
        label: File name ending of lesion masks.
        brain_mask: Likewise.
        slice_range: First axial slice and the one after the last; None: all.
        allow_outside: Likewise.
        exclude: Likewise.
        unlabeled_are_healthy: Take scans without a label as such without lesion.

    Returns:
        The scans, with ``voxel_ml``, and with ``error`` where one cannot be used.

    Raises:
        FileNotFoundError: When a file is missing, or every label.
        ValueError: When no scan can be used.
    """
    subjects = find_subjects(dataset_dir, modalities, split, label, brain_mask, allow_outside, exclude)
    unlabeled = [subject["case"] for subject in subjects if not {"label", "error"} & subject.keys()]
    if unlabeled_are_healthy:
        _tell(f"Without a label (CASE_{label}.nii.gz), taken as healthy", unlabeled)
    elif unlabeled:
        errors = {
            case: f"{case} has no label: expected {case}_{label}.nii.gz beside its images; exclude the case, change "
            "`label`, or set `unlabeled_are_healthy`."
            for case in unlabeled
        }
        if len(unlabeled) == len(subjects):
            raise FileNotFoundError(errors[unlabeled[0]])
        if split is None:
            _tell("Without a label, left out (`unlabeled_are_healthy` takes them as healthy)", unlabeled)
            subjects = [subject for subject in subjects if subject["case"] not in unlabeled]
        else:
            subjects = [
                {**subject, "error": errors[subject["case"]]} if subject["case"] in errors else subject
                for subject in subjects
            ]
    usable = mark_unusable(subjects, slice_range)
    return [
        subject if "error" in subject else {**subject, "voxel_ml": voxel_ml(load_volume(subject["image"][0]).affine)}
        for subject in usable
    ]


def _tell(what: str, cases: Sequence[str]) -> None:
    """Print, once of several processes, what is so of which cases; nothing where there are none."""
    if cases and os.environ.get("RANK", "0") == "0":
        print("\n".join([f"{what}: {len(cases)}", *shown_list(cases)]))
