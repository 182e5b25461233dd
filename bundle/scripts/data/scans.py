"""Finding scans on disk, and saying what is wrong with them before any work starts."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ..common.batch import shown_list
from .layouts import (
    MODALITIES,
    Place,
    case_of,
    ending_of,
    endings_of,
    names_of,
    place_named,
    place_of_file,
    places_of,
)
from .lists import check_case_name, existing_folder, inside, read_json, read_split, shown
from .nifti import VOLUME_SUFFIXES, check_forms, file_stem, is_volume_name, number_of_slices, read_header

Subject = dict[str, Any]  # case, image, and label, brain_mask or error where there are any
AUTO = "auto"  # as `brain_mask`: none is given, and scans that still have their skull are stripped
RESULTS = ("anomaly_mask", "anomaly_map")  # what inference adds to a case's name
FOUND_BRAIN = "found_brain_mask"  # and on request
MASKS = ("seg", "mask", "label", "dseg", "probseg", *RESULTS, FOUND_BRAIN)  # endings of files that are no scans
PLAIN = (".txt", ".json", ".csv", ".tsv", ".md")  # endings of files beside scans that need no word


def _each_once(subjects: list[Subject], source: object) -> list[Subject]:
    """The subjects, each of another name that can be that of a folder: outputs go by it."""
    names = [subject["case"] for subject in subjects]
    for name in names:
        check_case_name(name, source)
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            earlier = seen[key]
            twice = (
                f"{name} twice" if name == earlier else f"{earlier} and {name}, which some file systems take for one"
            )
            raise ValueError(f"{source} holds {twice}: list each case once, and give each a name of its own.")
        seen[key] = name
    return subjects


def _subject(place: Place, modalities: Sequence[str], label: str | None, brain_mask: str | None) -> Subject:
    """The files of a case.

    Raises:
        FileNotFoundError: When an image, or the brain mask, is missing.
        ValueError: When two files could be the same thing.
    """
    subject: Subject = {"case": place.case, "image": []}
    for modality in modalities:
        path = place.file or place.image(modality)
        if path is None:
            raise FileNotFoundError(
                f"{place.case} has no {modality}: expected {place.expected(modality)}; exclude the case or change "
                "`modalities`."
            )
        subject["image"].append(str(path))
    for key, role in (("label", label), ("brain_mask", brain_mask)):
        path = place.mask(role) if role else None
        if path is not None:
            subject[key] = str(path)
        elif key == "brain_mask" and role:
            raise FileNotFoundError(
                f"{place.case} has no brain mask: expected {place.expected(role)}; set `brain_mask` to null to take "
                "every voxel unlike the background."
            )
    return subject


def _named_subjects(
    root: Path,
    name: str,
    modalities: Sequence[str],
    label: str | None,
    brain_mask: str | None,
    source: object,
    allow_outside: bool,
) -> list[Subject]:
    """The case of a name, or the sessions of a person, without those that lack an image where others have it."""
    inside(root, name, source, allow_outside)
    places = place_named(root, name, modalities)
    if not places:
        raise FileNotFoundError(
            f"{source} names {name}, but {root} has no folder of that name: correct the list, or add it."
        )
    found, lacking = [], []
    for place in places:
        try:
            found.append(_subject(place, modalities, label, brain_mask))
        except FileNotFoundError as error:
            lacking.append(error)
    if not found:
        raise lacking[0]
    for reason in lacking:
        print(f"Left out: {str(reason).partition(';')[0]}")
    return found


def find_subjects(
    dataset_dir: str | os.PathLike,
    modalities: Sequence[str],
    split: str | Sequence[str] | None = None,
    label: str | None = "seg",
    brain_mask: str | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
) -> list[Subject]:
    """List scans of a folder, in any of the conventions of `layouts`, or of a Decathlon-style datalist.

    Without a split every case that has a file for each modality is a scan. How many were found is printed, and what
    was left out and why.

    Args:
        dataset_dir: The folder, or a datalist (JSON): lists of ``image`` (a file or one for each modality), ``label``
            and ``brain_mask`` under names such as "training"; its paths are relative to it.
        modalities: File name endings, in the order of the channels.
        split: Case names, a split file, a list's name in the datalist, or None for all there is. The name of a person
            is that of all its sessions.
        label: File name ending of lesion masks; a scan may have none.
        brain_mask: File name ending of brain masks; None or `AUTO` where there are none.
        allow_outside: Let the datalist or the split name files outside the folder.
        exclude: Names of cases to leave out, a file with one a line, or None.

    Returns:
        For each scan ``case``, ``image`` (a list of files), and ``label`` and ``brain_mask`` where there are any.

    Raises:
        FileNotFoundError: When a folder or file is missing.
        ValueError: When nothing is found, or a name leads out of the folder.
    """
    if not modalities or isinstance(modalities, str):
        raise ValueError(f"`modalities` must be a list of names such as ['flair'], got {modalities!r}.")
    if str(dataset_dir).endswith(".json"):
        found = _datalist_subjects(Path(dataset_dir), modalities, split, allow_outside)
        found = without(found, exclude, dataset_dir)
        tell_found(dataset_dir, found, {})
        return found
    root = existing_folder(dataset_dir)
    brain_mask = None if brain_mask == AUTO else brain_mask
    if split is not None:
        source = split if isinstance(split, str) else "The split"
        names = read_split(split)
        options = modalities, label, brain_mask, source, allow_outside
        found = [subject for name in names for subject in _named_subjects(root, name, *options)]
        return without(_each_once(found, source), exclude, source)
    found, left_out = _look_through(root, modalities, label, brain_mask)
    if not found:
        _raise_nothing_found(root, modalities, left_out)
    found = without(_each_once(found, root), exclude, root)
    tell_found(root, found, left_out)
    return found


def _look_through(
    root: Path, modalities: Sequence[str], label: str | None, brain_mask: str | None
) -> tuple[list[Subject], dict[str, str]]:
    """The scans of a folder by the rule of `find_subjects`, and for each other thing in it why it is none."""
    paths = sorted(root.iterdir())
    left_out = {path.name: "hidden" for path in paths if path.name.startswith(".")}
    folders = [path for path in paths if path.is_dir() and path.name not in left_out]
    for folder in folders:
        inside(root, folder.name, root)
    places = [place for folder in folders for place in places_of(folder)]
    found = _take(places, modalities, label, brain_mask, left_out)
    taken = {subject["case"].casefold() for subject in found}
    loose: dict[str, Place] = {}
    for path in paths:
        if path.is_dir() or path.name in left_out or path.name.endswith(PLAIN):
            continue
        place, reason = place_of_file(path, modalities), why_no_scan(path, modalities, label)
        if reason is None and place.case.casefold() in taken:
            reason = "a folder of this name holds a scan"
        if reason is not None:
            left_out[path.name] = reason
        else:  # of several modalities the files of a case belong together
            loose.setdefault(place.case if place.file is None else path.name, place)
    beside = _take(loose.values(), modalities, label, brain_mask, left_out)
    used = {Path(subject[key]).name for subject in beside for key in ("label", "brain_mask") if key in subject}
    return found + beside, {name: reason for name, reason in left_out.items() if name not in used}


def _take(
    places: Iterable[Place],
    modalities: Sequence[str],
    label: str | None,
    brain_mask: str | None,
    left_out: dict[str, str],
) -> list[Subject]:
    """The cases that are scans; for the others adds to ``left_out`` what they lack."""
    found = []
    bids = any(place.is_bids for place in places)
    for place in places:
        try:
            found.append(_subject(place, modalities, label, brain_mask))
        except FileNotFoundError as error:
            other = bids and not place.case.startswith("sub-")
            left_out[place.case] = "no folder of a subject (sub-...)" if other else str(error).partition(";")[0]
        except ValueError as error:
            found.append({"case": place.case, "image": [], "error": str(error)})
    return found


def why_no_scan(path: Path, modalities: Sequence[str], label: str | None = None) -> str | None:
    """Why a file is not taken as a scan by its name, or None where it is."""
    if not is_volume_name(path.name):
        return "no NIfTI file"
    stem = file_stem(path)
    masks = [*MASKS, *(endings_of(label) if label else [])]
    ending = next((name for name in masks if stem.endswith(f"_{name}")), None)
    if ending is not None:
        return f"_{ending} is the ending of masks"
    if ending_of(stem, modalities) is None:
        ending = ending_of(stem, MODALITIES)
        if ending is not None:
            return f"_{ending} is the ending of another modality"
        if len(modalities) > 1:
            return f"of several modalities, each file needs its ending, such as NAME_{modalities[0]}"
    return None


def _raise_nothing_found(root: Path, modalities: Sequence[str], left_out: Mapping[str, str]) -> None:
    for name, reason in left_out.items():
        places = place_named(root, name, modalities) if reason.startswith(f"{name} has no ") else []
        if any(is_volume_name(path.name) for place in places for path in place.folder.iterdir()):
            raise FileNotFoundError(f"{reason}; add it, or change `modalities`.")
    raise ValueError(
        f"No scan in {root}: expected folders NAME with files NAME_{modalities[0]}.nii.gz, or BIDS; check "
        "`dataset_dir` and `modalities`."
    )


def tell_found(source: object, found: Sequence[Subject], left_out: Mapping[str, str]) -> None:
    """Print how many scans were found, and what was left out and why; of several processes the first does."""
    if os.environ.get("RANK", "0") != "0":
        return
    without = f", {len(left_out)} left out:" if left_out else ""
    print(f"{source}: {len(found)} scan{'s' if len(found) != 1 else ''} found{without}")
    reasons = [reason if reason.startswith(name) else f"{name}: {reason}" for name, reason in left_out.items()]
    for line in shown_list(reasons):
        print(line)


def without(subjects: list[Subject], exclude: str | Sequence[str] | None, source: object) -> list[Subject]:
    """The subjects that are not to be left out.

    Args:
        subjects: At least one.
        exclude: Case names, a file with one a line, or None.
        source: Where they are from, for the message.

    Raises:
        ValueError: When a name is that of no subject, or none is left.
    """
    if exclude is None:
        return subjects
    names = read_split(exclude, "`exclude`")
    unknown = sorted({*names} - {name for subject in subjects for name in names_of(subject["case"])})
    if unknown:
        raise ValueError(f"`exclude` names {unknown[0]}, but {source} has no case of that name: correct `exclude`.")
    left = [subject for subject in subjects if not {*names} & names_of(subject["case"])]
    if not left:
        raise ValueError(f"`exclude` names every case of {source}: leave at least one.")
    return left


def scan_subjects(
    scans: Sequence[Mapping[str, Any]], modalities: Sequence[str], slice_range: Sequence[int] | None = None
) -> list[Subject]:
    """Give scans that are listed by their files the form of `find_subjects`, and check their headers.

    Args:
        scans: For each scan its files ``image`` (one, or one for each modality) and, if any, ``label``.
        modalities: Names of the channels.
        slice_range: First axial slice, and the one after the last, that will be used; None: all.

    Raises:
        ValueError: What `check_subjects` finds in files of known formats; or when a scan has another number of files
            than there are modalities, or two have the same name.
    """
    subjects = []
    for scan in scans:
        files = [scan["image"]] if isinstance(scan["image"], str) else list(scan["image"])
        if len(files) != len(modalities):
            raise ValueError(
                f"{files[0]} is one of {len(files)} files, but `modalities` has {len(modalities)}: give one for each."
            )
        label = {"label": scan["label"]} if scan.get("label") else {}
        subjects.append({"case": case_of(files[0], modalities), "image": files, **label})
    _check_slice_range(slice_range)
    files_of = [[*subject["image"], subject.get("label", ".nii")] for subject in subjects]
    known = [all(file.endswith(VOLUME_SUFFIXES) for file in files) for files in files_of]
    check_subjects(list(compress(subjects, known)), slice_range)
    return _each_once(subjects, "The list of scans")


def _datalist_subjects(
    path: Path, modalities: Sequence[str], split: str | Sequence[str] | None, allow_outside: bool
) -> list[Subject]:
    if not path.is_file():
        raise FileNotFoundError(f"No datalist {path}: set `dataset_dir` to a folder or an existing datalist.")
    content = read_json(path, "a Decathlon-style datalist")
    content = content if isinstance(content, dict) else {}
    lists = {name: value for name, value in content.items() if isinstance(value, list) and not _is_of_words(value)}
    _check_modalities(path, content, modalities)
    if split is not None and (not isinstance(split, str) or split not in lists):
        raise ValueError(
            f"{path} has no list {shown(split)}, only {', '.join(lists) or 'none'}: set the split to one of them."
        )
    items = lists[split] if split is not None else [item for value in lists.values() for item in value]
    subjects = []
    for item in items:
        item = {"image": item} if isinstance(item, str) else item
        if not isinstance(item, dict) or "image" not in item:
            raise ValueError(f"{path} has an entry without `image`: expected objects with image and, if any, label.")
        files = item["image"] if isinstance(item["image"], list) else [item["image"]]
        if len(files) != len(modalities):
            raise ValueError(
                f"{path} lists {len(files)} image files for a case, but `modalities` has {len(modalities)}: list one "
                "for each."
            )
        subject: Subject = {"image": [str(inside(path.parent, name, path, allow_outside)) for name in files]}
        for key in ("label", "brain_mask"):
            if item.get(key):
                subject[key] = str(inside(path.parent, item[key], path, allow_outside))
        case = item.get("case") or case_of(files[0], modalities)
        subjects.append({"case": str(case) if type(case) is int else case, **subject})
    if not subjects:
        raise ValueError(f"{path} lists no case: give lists of objects with image and, if any, label.")
    return _each_once(subjects, path)


def _is_of_words(value: list) -> bool:
    """Whether a list of a datalist holds words, such as authors, and not scans."""
    return bool(value) and all(isinstance(item, str) and not is_volume_name(os.path.basename(item)) for item in value)


def _check_modalities(path: Path, content: Mapping[str, Any], modalities: Sequence[str]) -> None:
    """Refuse a datalist that tells other modalities, or another order, than the ids of the config."""
    told = content.get("channel_names", content.get("modality"))
    if not isinstance(told, dict) or not told:
        return
    names = [str(told[key]).lower() for key in sorted(told, key=str)]
    wanted = [str(name).lower() for name in modalities]
    if len(names) != len(wanted) or (sorted(names) == sorted(wanted) and names != wanted):
        raise ValueError(
            f"{path} tells the modalities {', '.join(names)}, but `modalities` is {', '.join(wanted)}: set it to "
            "match, with one file for each."
        )


def _check_slice_range(slice_range: Any) -> None:
    if slice_range is None:
        return
    pair = isinstance(slice_range, Sequence) and len(slice_range) == 2
    if not pair or not all(type(k) is int for k in slice_range) or not 0 <= slice_range[0] < slice_range[1]:
        raise ValueError(
            "`slice_range` must be [first, after the last] of whole numbers with 0 <= first < after the last, got "
            f"{shown(slice_range)}."
        )


def check_subjects(
    subjects: Sequence[Subject], slice_range: Sequence[int] | None = None, planes: Sequence[str] = ("axial",)
) -> None:
    """Read the headers of all scans and refuse what later steps cannot use.

    Args:
        subjects: What `find_subjects` found.
        slice_range: First slice, and the one after the last, that will be used; None: all.
        planes: Of the slices, such as "axial".

    Raises:
        ValueError: When files of a scan differ in shape or affine, or the range leaves the volume.
    """
    _check_slice_range(slice_range)
    for subject in subjects:
        _check_subject(subject, slice_range, planes)


def mark_unusable(
    subjects: Sequence[Subject], slice_range: Sequence[int] | None = None, planes: Sequence[str] = ("axial",)
) -> list[Subject]:
    """The subjects, with the sentence of `check_subjects` as ``error`` where one cannot be used.

    Raises:
        ValueError: When none of them can.
    """
    _check_slice_range(slice_range)
    marked, first = [], None
    for subject in subjects:
        try:
            if "error" not in subject:
                _check_subject(subject, slice_range, planes)
            marked.append(subject)
        except (ValueError, FileNotFoundError) as error:
            first = first or error
            marked.append({**subject, "error": str(error)})
    if first is not None and all("error" in subject for subject in marked):
        raise first
    return marked


def _check_subject(subject: Subject, slice_range: Sequence[int] | None, planes: Sequence[str]) -> None:
    files = [*subject["image"], *(subject[key] for key in ("label", "brain_mask") if key in subject)]
    shape, affine = read_header(files[0])
    check_forms(files[0], str(subject["case"]))
    for path in files[1:]:
        other_shape, other_affine = read_header(path)
        if other_shape != shape:
            raise ValueError(f"{path} has shape {other_shape}, but {files[0]} has {shape}: resample one to the other.")
        if not np.allclose(other_affine, affine, atol=1e-3):
            raise ValueError(f"{path} has another affine than {files[0]}: resample one to the other.")
    for plane in planes:
        slices = number_of_slices(shape, affine, plane)
        if slice_range is not None and slice_range[1] > slices:
            raise ValueError(
                f"{files[0]} has {slices} {plane} slices, so `slice_range` {list(slice_range)} leaves it: choose a "
                f"range within [0, {slices}], or null for all slices."
            )
