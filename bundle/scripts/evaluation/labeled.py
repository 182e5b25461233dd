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
        dataset_dir: Folder of scans, or a datalist.
        modalities: File name endings, in the order of the channels.
        split: Case names, a split file, or None for all there is.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks; None: voxels unlike the background are brain.
        slice_range: First axial slice and the one after the last; None: all.
        allow_outside: As in `find_subjects`.
        exclude: Likewise.
        unlabeled_are_healthy: Take scans without a label as such without lesion.

    Returns:
        The scans, with ``voxel_ml``, and with ``error`` where one cannot be used.

    Raises:
        FileNotFoundError: When a file is missing, or every label.
        ValueError: When no scan can be used.
    """
    subjects = find_subjects(dataset_dir, modalities, split, label, brain_mask, allow_outside, exclude)
    if unlabeled_are_healthy:
        _tell_healthy([subject["case"] for subject in subjects if not {"label", "error"} & subject.keys()], label)
    else:
        subjects = _labeled(subjects, label, named=split is not None)
    usable = mark_unusable(subjects, slice_range)
    return [
        subject if "error" in subject else {**subject, "voxel_ml": voxel_ml(load_volume(subject["image"][0]).affine)}
        for subject in usable
    ]


def _labeled(subjects: Sequence[Subject], label: str, named: bool) -> list[Subject]:
    """The subjects that have a label; of those that were named, the others too, with their sentence as ``error``."""
    lacking = {
        case: f"{case} has no label: expected {case}_{label}.nii.gz beside its images; exclude the case, change "
        "`label`, or set `unlabeled_are_healthy`."
        for case in (subject["case"] for subject in subjects if not {"label", "error"} & subject.keys())
    }
    if lacking and len(lacking) == len(subjects):
        raise FileNotFoundError(next(iter(lacking.values())))
    if named:
        return [{**case, "error": lacking[case["case"]]} if case["case"] in lacking else case for case in subjects]
    if lacking and os.environ.get("RANK", "0") == "0":
        print(f"Without a label, left out (`unlabeled_are_healthy` takes them as healthy): {len(lacking)}")
        print("\n".join(shown_list([*lacking])))
    return [subject for subject in subjects if subject["case"] not in lacking]


def _tell_healthy(cases: Sequence[str], label: str) -> None:
    """Print which cases count as healthy for want of a label."""
    if cases and os.environ.get("RANK", "0") == "0":
        print(f"Without a label (CASE_{label}.nii.gz), taken as healthy: {len(cases)}")
        print("\n".join(shown_list(cases)))
