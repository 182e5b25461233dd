"""The one way to find scans: on disk or in a list, with what is wrong with them said before any work starts."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..common.case_runner import shown_list
from ..common.checks import LONGEST_NAME, is_name, shown
from .layouts import MODALITIES, Place, case_of, ending_of, endings_of, names_of, place_of_file, places_of, subject_of
from .lists import inside, read_split
from .nifti import axial_slices, check_forms, file_stem, is_dicom, is_volume_name, read_header

Scan = dict[str, Any]  # case, image, and label, brain_mask, warnings or error where there are any
RESULTS = ("anomaly_mask", "anomaly_map")  # what inference adds to a case's name
FOUND_BRAIN = "found_brain_mask"  # and on request
MASKS = ("seg", "mask", "label", "dseg", "probseg", *RESULTS, FOUND_BRAIN)  # endings of files that are no scans
PLAIN = (".txt", ".json", ".csv", ".tsv", ".md")  # endings of files beside scans that need no word
MOST_ENTRIES = 100  # of a folder without a scan, looked at for what it holds instead


def find_scans(
    dataset_dir: str | os.PathLike | Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    image: str | Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
    label: str | None = None,
    brain_mask: str | None = None,
    exclude: str | Sequence[str] | None = None,
    allow_outside: bool = False,
    unlabeled_are_healthy: bool | None = None,
    slice_range: Sequence[int] | None = None,
) -> list[Scan]:
    """List the scans of a folder, in any of the conventions of `layouts`, or of a list, and check their headers.

    Every case that has a file for each modality is a scan. How many were found is printed, and what was left out and
    why. A scan that cannot be used stops no other.

    Args:
        dataset_dir: The folder; a Decathlon-style datalist (JSON): lists of ``image`` (a file or one for each
            modality), ``label``, ``brain_mask`` and ``case`` under names such as "training", with paths relative to
            it; or such a list itself, as MONAI Label gives it.
        modalities: File name endings, in the order of the channels.
        image: One scan instead of those of the folder: a file, or one for each modality.
        split: Case names, a file with one a line, a list's name in the datalist, or None for all there is. The name of
            a subject, or session, is that of all its scans.
        label: File name ending of lesion masks; None: none are looked for.
        brain_mask: File name ending of brain masks, of one pipeline of BIDS as "<pipeline>/desc-brain_mask"; with
            ``image`` the mask's file. None: there are none.
        exclude: Names of cases to leave out, a file with one a line, or None.
        allow_outside: Let the datalist or the split name files outside the folder.
        unlabeled_are_healthy: True: scans without a label are such without lesion, which is told; False: they are
            left out, or, where the split names them, cannot be used; None: whether they have one does not matter.
        slice_range: First axial slice, and the one after the last, that will be used; None: all.

    Returns:
        For each scan ``case``, ``image`` (a list of files), ``label`` and ``brain_mask`` where there are any,
        ``warnings`` where there are some, and ``error``, a sentence, where it cannot be used.

    Raises:
        FileNotFoundError: When a folder or list is missing, or there is no scan.
        ValueError: When no scan can be used, or a list names what may not be used.
    """
    if not modalities or isinstance(modalities, str):
        raise ValueError(f"`modalities` must be a list of names such as ['flair'], got {modalities!r}.")
    left_out: dict[str, str] = {}
    source: object = split if isinstance(split, str) else dataset_dir
    if image is not None:
        scans = [_given(image, modalities, brain_mask)]
    elif not isinstance(dataset_dir, (str, os.PathLike)):
        source = "The list of scans"
        scans = _listed(dataset_dir, modalities, source, Path(), allow_outside=True)
    elif str(dataset_dir).endswith(".json"):
        scans = _datalist(Path(dataset_dir), modalities, split, allow_outside)
    else:
        root = Path(dataset_dir)
        if not root.is_dir():
            raise FileNotFoundError(f"No folder {root}: set `dataset_dir` to the folder that holds the data.")
        places, left_out = _places(root, modalities, label)
        if split is not None:
            places, left_out = _named(places, read_split(split), root, modalities[0], source, allow_outside), {}
        scans = _resolve(places, modalities, {"label": label, "brain_mask": brain_mask}, split is not None, left_out)
        if not scans:
            _raise_nothing_found(root, modalities, left_out)
    _check_names([scan["case"] for scan in scans], source)
    scans = without(scans, exclude, source, left_out)
    if image is None:
        lines = [reason if reason.startswith(name) else f"{name}: {reason}" for name, reason in left_out.items()]
        more = f", {len(lines)} left out:" if lines else ""
        _tell(f"{source}: {len(scans)} scan{'s' * (len(scans) != 1)} found{more}", lines)
    if label and unlabeled_are_healthy is not None:
        scans = _with_labels(scans, label, unlabeled_are_healthy, split is not None)
    return _checked(scans, slice_range)


def without(
    scans: Sequence[Scan], exclude: str | Sequence[str] | None, source: object, known: Iterable[str] = ()
) -> list[Scan]:
    """The scans that are not to be left out.

    Args:
        scans: At least one.
        exclude: Names of cases, subjects or sessions, a file with one a line, or None.
        source: Where they are from, for the message.
        known: Further names that are no mistake.

    Raises:
        ValueError: When a name is that of no scan, or none is left.
    """
    names = set() if exclude is None else {*read_split(exclude, "`exclude`")}
    unknown = sorted(names - {name for case in (*known, *(scan["case"] for scan in scans)) for name in names_of(case)})
    if unknown:
        raise ValueError(f"`exclude` names {unknown[0]}, but {source} has no case of that name: correct `exclude`.")
    left = [scan for scan in scans if not names & names_of(scan["case"])]
    if not left:
        raise ValueError(f"`exclude` names every case of {source}: leave at least one.")
    return left


def _given(image: str | Sequence[str], modalities: Sequence[str], brain_mask: str | None) -> Scan:
    """The scan of files that are named one by one."""
    files = [image] if isinstance(image, str) else list(image)
    if len(files) != len(modalities):
        raise ValueError(
            f"`image` has {len(files)} files, but the model takes {len(modalities)} modalities "
            f"({', '.join(modalities)}): give one file for each."
        )
    for file, modality in zip(files, modalities, strict=True):
        reason = why_no_scan(Path(file), [modality])
        if is_volume_name(os.path.basename(file)) and reason is not None:
            raise ValueError(
                f"{file} is taken for no {modality} scan, since {reason}: give the {modality} scan, or rename it."
            )
    scan = {"case": case_of(files[0], modalities), "image": [str(Path(file)) for file in files]}
    return scan | ({"brain_mask": brain_mask} if brain_mask else {})


def _places(root: Path, modalities: Sequence[str], label: str | None) -> tuple[list[Place], dict[str, str]]:
    """Where scans of a folder may lie, and for each other thing in it why it is none."""
    paths = sorted(root.iterdir())
    left_out = {path.name: "hidden" for path in paths if path.name.startswith(".")}
    paths = [path for path in paths if path.name not in left_out]
    folders = [path for path in paths if path.is_dir()]
    for folder in folders:
        inside(root, folder.name, root)
    places = [place for folder in folders for place in places_of(folder, modalities[0])]
    if any(place.is_bids for place in places):
        left_out |= {folder.name: "no folder of a subject (sub-...)" for folder in folders if folder.name[:4] != "sub-"}
        places = [place for place in places if place.is_bids or place.folder.name not in left_out]
    loose: dict[str, Place] = {}
    for path in paths:
        if path in folders or path.name.endswith(PLAIN):
            continue
        if (reason := why_no_scan(path, modalities, label)) is not None:
            left_out[path.name] = reason
        else:  # of several modalities the files of a case belong together
            place = place_of_file(path, modalities)
            loose.setdefault(place.case if place.file is None else path.name, place)
    return places + [*loose.values()], left_out


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


def _named(
    places: Sequence[Place], names: Sequence[str], root: Path, modality: str, source: object, allow_outside: bool
) -> list[Place]:
    """The places that go by the names of a split, in its order."""
    what = source if isinstance(source, str) else "The split"
    chosen = []
    for name in names:
        folder = inside(root, name, what, allow_outside)
        found = [place for place in places if name in names_of(place.case)]
        found = found or (places_of(folder, modality) if folder.is_dir() else [])
        if not found:
            raise FileNotFoundError(
                f"{what} names {name}, but {root.absolute()} has no scan of that name: correct the list, or add it."
            )
        chosen += found
    return chosen


def _resolve(
    places: Sequence[Place],
    modalities: Sequence[str],
    masks: Mapping[str, str | None],
    are_named: bool,
    left_out: dict[str, str],
) -> list[Scan]:
    """The scans at these places; what another lacks goes to ``left_out``, or is its error where a list names it."""
    scans: list[Scan] = []
    lacking: dict[str, str] = {}
    for place in places:
        try:
            scans.append(_scan_at(place, modalities, masks))
        except FileNotFoundError as error:
            lacking[place.case] = str(error)
        except ValueError as error:
            scans.append({"case": place.case, "image": [], "error": str(error)})
    if are_named:
        found = {subject_of(scan["case"]) for scan in scans}
        errors = {case: reason for case, reason in lacking.items() if subject_of(case) not in found}
        return scans + [{"case": case, "image": [], "error": reason} for case, reason in errors.items()]
    left_out |= {case: reason.partition(";")[0] for case, reason in lacking.items()}
    for name in {Path(scan[key]).name for scan in scans for key in masks if key in scan} & left_out.keys():
        del left_out[name]
    return scans


def _scan_at(place: Place, modalities: Sequence[str], masks: Mapping[str, str | None]) -> Scan:
    """The files of a case.

    Raises:
        FileNotFoundError: When an image, or the brain mask, is missing.
        ValueError: When two files could be the same thing.
    """
    scan: Scan = {"case": place.case, "image": []}
    for channel, modality in enumerate(modalities):
        path = place.file if place.file and channel == 0 else place.find(modality, [place.folder])
        if path is None:
            raise FileNotFoundError(
                f"{place.case} has no {modality}: expected {place.expected(modality)}; exclude the case or change "
                "`modalities`."
            )
        scan["image"].append(str(path))
    for key, role in masks.items():
        path = place.mask(role) if role else None
        if path is not None:
            scan[key] = str(path)
        elif role and key == "brain_mask":
            raise FileNotFoundError(
                f"{place.case} has no brain mask: expected {place.expected(role)}; set `brain_mask` to null to find "
                "the brain in the scan."
            )
    return scan


def _raise_nothing_found(root: Path, modalities: Sequence[str], left_out: Mapping[str, str]) -> None:
    """Say what is in a folder in place of scans, as well as that can be told."""
    if any(map(is_dicom, islice(root.rglob("*"), MOST_ENTRIES))):
        raise ValueError(f"{root} holds DICOM files: convert each series to NIfTI first, such as by dcm2niix.")
    expected = f"expected folders NAME with files NAME_{modalities[0]}.nii.gz, or BIDS"
    reason = next((reason for name, reason in left_out.items() if reason.startswith(f"{name} has no ")), expected)
    raise FileNotFoundError(
        f"No scan in {root}: {reason}; check `dataset_dir` and `modalities`, or list the files of other folders, such "
        "as those of MSLesSeg and of the WMH challenge, in a datalist (docs/segment.md)."
    )


def _listed(
    entries: Sequence[Any], modalities: Sequence[str], source: object, root: Path, allow_outside: bool
) -> list[Scan]:
    """The scans of a list: files, or objects with ``image`` and, if any, ``label``, ``brain_mask`` and ``case``."""
    scans = []
    for entry in entries:
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or "image" not in entry:
            raise ValueError(f"{source} has an entry without `image`: expected objects with image and, if any, label.")
        files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        if len(files) != len(modalities):
            raise ValueError(
                f"{source} lists {len(files)} image files for a case, but `modalities` has {len(modalities)}: list one "
                "for each."
            )
        scan: Scan = {"image": [str(inside(root, name, source, allow_outside)) for name in files]}
        for key in ("label", "brain_mask"):
            if entry.get(key):
                scan[key] = str(inside(root, entry[key], source, allow_outside))
        case = entry.get("case") or case_of(files[0], modalities)
        scans.append({"case": str(case) if type(case) is int else case, **scan})
    if not scans:
        raise ValueError(f"{source} lists no case: give lists of objects with image and, if any, label.")
    return scans


def _datalist(
    path: Path, modalities: Sequence[str], split: str | Sequence[str] | None, allow_outside: bool
) -> list[Scan]:
    """The scans of a Decathlon-style datalist, of one of its lists or of all."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise FileNotFoundError(f"No datalist {path}: set `dataset_dir` to a folder or an existing datalist.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): give a Decathlon-style datalist.") from None
    content = content if isinstance(content, dict) else {}
    told = content.get("channel_names", content.get("modality"))
    names = [str(told[key]).lower() for key in sorted(told)] if isinstance(told, dict) else []
    wanted = [name.lower() for name in modalities]
    if names != wanted and sorted(names) == sorted(wanted):
        raise ValueError(
            f"{path} tells the modalities {', '.join(names)}, but `modalities` is {', '.join(wanted)}: set it to match."
        )
    lists = {name: value for name, value in content.items() if isinstance(value, list) and not _is_of_words(value)}
    if split is not None and (not isinstance(split, str) or split not in lists):
        raise ValueError(
            f"{path} has no list {shown(split)}, only {', '.join(lists) or 'none'}: set the split to one of them."
        )
    entries = lists[split] if split is not None else [entry for value in lists.values() for entry in value]
    return _listed(entries, modalities, path, path.parent, allow_outside)


def _is_of_words(value: list) -> bool:
    """Whether a list of a datalist holds words, such as authors, and not scans."""
    names = [os.path.basename(entry) for entry in value if isinstance(entry, str)]
    return bool(value) and len(names) == len(value) and not any(map(is_volume_name, names))


def _check_names(names: Sequence[str], source: object) -> None:
    """Refuse a name that cannot be that of a folder, and names of which two are one: outputs go by them."""
    seen: dict[str, str] = {}
    for name in names:
        if not is_name(name):
            raise ValueError(
                f"{source} has the case name {shown(name)}: use one line of text without slashes and without a leading "
                f"dot, of at most {LONGEST_NAME} bytes."
            )
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            earlier = seen[key]
            twice = (
                f"{name} twice" if name == earlier else f"{earlier} and {name}, which some file systems take for one"
            )
            raise ValueError(f"{source} holds {twice}: list each case once, and give each a name of its own.")
        seen[key] = name


def _tell(line: str, others: Sequence[str]) -> None:
    """Print a line with others below it; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        print("\n".join([line, *shown_list(others)]))


def _with_labels(scans: Sequence[Scan], label: str, healthy: bool, are_named: bool) -> list[Scan]:
    """The scans that can be scored: with a label, or taken as healthy."""
    lacking = {
        scan["case"]: f"{scan['case']} has no label: expected {scan['case']}_{label}.nii.gz beside its images; exclude "
        "the case, change `label`, or set `unlabeled_are_healthy`."
        for scan in scans
        if not {"label", "error"} & scan.keys()
    }
    if lacking and healthy:
        _tell(f"Without a label (CASE_{label}.nii.gz), taken as healthy: {len(lacking)}", [*lacking])
    if not lacking or healthy:
        return [*scans]
    if len(lacking) == len(scans):
        raise FileNotFoundError(next(iter(lacking.values())))
    if are_named:
        return [{**scan, "error": lacking[scan["case"]]} if scan["case"] in lacking else scan for scan in scans]
    _tell(f"Without a label, left out (`unlabeled_are_healthy` takes them as healthy): {len(lacking)}", [*lacking])
    return [scan for scan in scans if scan["case"] not in lacking]


def _checked(scans: Sequence[Scan], slice_range: Sequence[int] | None) -> list[Scan]:
    """The scans, with what their headers tell as ``warnings``, or as ``error`` where one cannot be used.

    Raises:
        ValueError: When none can.
        FileNotFoundError: Likewise.
    """
    checked = []
    for scan in scans:
        try:
            warnings = [] if "error" in scan else _header_warnings(scan, slice_range)
            checked.append({**scan, "warnings": warnings} if warnings else scan)
        except (ValueError, FileNotFoundError) as error:
            if len(scans) == 1:
                raise
            checked.append({**scan, "error": str(error)})
    if all("error" in scan for scan in checked):
        raise ValueError(checked[0]["error"])
    return checked


def _header_warnings(scan: Scan, slice_range: Sequence[int] | None) -> list[str]:
    files: list[str] = [*scan["image"], *(scan[key] for key in ("label", "brain_mask") if key in scan)]
    first = files[0]
    shape, affine = read_header(first)
    for path in files[1:]:
        other_shape, other_affine = read_header(path)
        if other_shape != shape:
            raise ValueError(f"{path} has shape {other_shape}, but {first} has {shape}: resample one to the other.")
        if not np.allclose(other_affine, affine, atol=1e-3):
            raise ValueError(f"{path} has another affine than {first}: resample one to the other.")
    slices = axial_slices(shape, affine)
    if slice_range is not None and slice_range[1] > slices:
        raise ValueError(
            f"{first} has {slices} axial slices, so `slice_range` {list(slice_range)} leaves it: choose a range within "
            f"[0, {slices}], or null for all slices."
        )
    return [f"{scan['case']}: {sentence}" for sentence in check_forms(first)]
