"""Finding scans and slices on disk, and saying what is wrong with them before any work starts."""

from __future__ import annotations

import gzip
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import nibabel as nib
import numpy as np

NIFTI_SUFFIXES = (".nii.gz", ".nii")
DATALIST = "datalist.json"
SPLITS = ("training", "validation", "testing")

Subject = dict[str, object]


def _existing_folder(dataset_dir: str | os.PathLike) -> Path:
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}: set `dataset_dir` to the folder that holds the data.")
    return folder


def _is_nifti_name(name: str) -> bool:
    return name.endswith(NIFTI_SUFFIXES) and not name.startswith(".")


def _holds_scan(folder: Path) -> bool:
    """Whether a folder follows the convention, be it without the modality that is due."""
    return any(_is_nifti_name(path.name) and path.name.startswith(f"{folder.name}_") for path in folder.iterdir())


def _each_once(subjects: list[Subject], source: object) -> list[Subject]:
    """The subjects, each of another name: outputs go by it."""
    names = [subject["case"] for subject in subjects]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source} holds {twice} twice: list each case once, and give each a name of its own.")
    return subjects


def _find_nifti(stem: Path) -> Path | None:
    return next((path for suffix in NIFTI_SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()), None)


def _case_name(path: Path) -> str:
    return next((path.name[: -len(suffix)] for suffix in NIFTI_SUFFIXES if path.name.endswith(suffix)), path.stem)


def _inside(root: Path, name: str, source: object) -> Path:
    """The path of ``name`` below ``root``; refuses names that lead out of it."""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] in (os.pardir, os.curdir):
        raise ValueError(f"{source} names {name!r}, which is outside {root}: list only names inside the data folder.")
    return root / name


def read_split(split: str | Sequence[str]) -> list[str]:
    """Case names of a split: a list, or a text file with one name a line (blank lines and # comments are skipped).

    Raises:
        FileNotFoundError: When the file does not exist.
        ValueError: When it is of another kind, or names no case, or one twice.
    """
    if isinstance(split, str):
        path = Path(split)
        if not path.is_file():
            raise FileNotFoundError(f"No split file {path}: give a text file with one case name a line, or null.")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"The split file {path} is no text file: give one case name a line.") from None
        names = [name for line in lines if (name := line.partition("#")[0].strip())]
    elif isinstance(split, Sequence):
        path, names = "The split", [str(name) for name in split]
    else:
        raise ValueError(f"A split must be a file, a list of case names, or null, got {split!r}.")
    if not names:
        raise ValueError(f"{path} names no case: put one case name on each line, or set the split to null.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{path} names {twice[0]} twice: list each case once.")
    return names


def _subject(
    root: Path, name: str, modalities: Sequence[str], label: str | None, brain_mask: str | None, source: object
) -> Subject:
    folder = _inside(root, name, source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{source} names {name}, but {root} has no folder of that name.")
    stem = folder / folder.name
    subject: Subject = {"case": folder.name, "image": []}
    for modality in modalities:
        path = _find_nifti(stem.with_name(f"{stem.name}_{modality}"))
        if path is None:
            raise FileNotFoundError(
                f"{folder.name} has no {modality}: expected {stem.name}_{modality}.nii.gz in {folder}; exclude the "
                "case or change `modalities`."
            )
        subject["image"].append(str(path))
    for key, suffix in (("label", label), ("brain_mask", brain_mask)):
        path = _find_nifti(stem.with_name(f"{stem.name}_{suffix}")) if suffix else None
        if path is not None:
            subject[key] = str(path)
        elif key == "brain_mask" and suffix:
            raise FileNotFoundError(
                f"{folder.name} has no brain mask: expected {stem.name}_{suffix}.nii.gz in {folder}; set `brain_mask` "
                "to null to take every voxel above 0."
            )
    return subject


def find_subjects(
    dataset_dir: str | os.PathLike,
    modalities: Sequence[str],
    split: str | Sequence[str] | None = None,
    label: str | None = "seg",
    brain_mask: str | None = None,
) -> list[Subject]:
    """List scans in the BraTS folder convention, ``NAME/NAME_<modality>.nii.gz``, or of a Decathlon-style datalist.

    A folder without such subfolders that holds NIfTI files itself is taken as one scan a file, for one modality.

    Args:
        dataset_dir: The folder, or a datalist (JSON): lists of ``image`` (a file or one for each modality), ``label``
            and ``brain_mask`` under names such as "training"; its paths are relative to it.
        modalities: File name endings, in the order of the channels.
        split: Case names, a split file, a list's name in the datalist, or None for all there is.
        label: File name ending of lesion masks; a scan may have none.
        brain_mask: File name ending of brain masks, or None where voxels above 0 are brain.

    Returns:
        For each scan ``case``, ``image`` (a list of files), and ``label`` and ``brain_mask`` where there are any.

    Raises:
        FileNotFoundError: When a folder or file is missing.
        ValueError: When nothing is found, or a name leads out of the folder.
    """
    if not modalities or isinstance(modalities, str):
        raise ValueError(f"`modalities` must be a list of names such as ['flair'], got {modalities!r}.")
    if str(dataset_dir).endswith(".json"):
        return _datalist_subjects(Path(dataset_dir), modalities, split)
    root = _existing_folder(dataset_dir)
    if split is not None:
        source = split if isinstance(split, str) else "The split"
        names = read_split(split)
        return _each_once([_subject(root, name, modalities, label, brain_mask, source) for name in names], source)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = [name for name in names if _holds_scan(root / name)]
    if names:
        return [_subject(root, name, modalities, label, brain_mask, root) for name in names]
    files = sorted(path for path in root.iterdir() if _is_nifti_name(path.name) and path.is_file())
    if files and len(modalities) == 1 and brain_mask is None:
        subjects = [{"case": _case_name(path), "image": [str(path)]} for path in files]
        return _each_once(subjects, root)
    raise ValueError(
        f"No scan in {root}: expected folders NAME with files NAME_{modalities[0]}.nii.gz; check `dataset_dir` and "
        "`modalities`."
    )


def scan_subjects(
    scans: Sequence[Mapping[str, object]], modalities: Sequence[str], slice_range: Sequence[int] | None = None
) -> list[Subject]:
    """Give scans that are listed by their files the form of `find_subjects`, and check their headers.

    Args:
        scans: For each scan its files ``image`` (one, or one for each modality) and, if any, ``label``.
        modalities: Names of the channels.
        slice_range: First axial slice, and the one after the last, that will be used; None: all.

    Raises:
        ValueError: What `check_subjects` finds in NIfTI files; or when a scan has another number of files than there
            are modalities, or two have the same name.
    """
    subjects = []
    for scan in scans:
        files = [scan["image"]] if isinstance(scan["image"], str) else list(scan["image"])
        if len(files) != len(modalities):
            raise ValueError(f"{files[0]} is one of {len(files)} files, but `modalities` has {len(modalities)}.")
        label = {"label": scan["label"]} if scan.get("label") else {}
        subjects.append({"case": _case_name(Path(files[0])), "image": files, **label})
    _check_slice_range(slice_range)
    files_of = [[*subject["image"], subject.get("label", ".nii")] for subject in subjects]
    nifti = [all(file.endswith(NIFTI_SUFFIXES) for file in files) for files in files_of]
    check_subjects(list(compress(subjects, nifti)), slice_range)
    return _each_once(subjects, "The list of scans")


def _datalist_subjects(path: Path, modalities: Sequence[str], split: str | Sequence[str] | None) -> list[Subject]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise FileNotFoundError(f"No datalist {path}: set `dataset_dir` to a folder or an existing datalist.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give a Decathlon-style datalist.") from None
    lists = (
        {name: value for name, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    if split is not None and (not isinstance(split, str) or split not in lists):
        raise ValueError(
            f"{path} has no list {split!r}, only {', '.join(lists) or 'none'}: set the split to one of them."
        )
    items = lists[split] if split is not None else [item for value in lists.values() for item in value]
    subjects = []
    for item in items:
        if not isinstance(item, dict) or "image" not in item:
            raise ValueError(f"{path} has an entry without `image`: expected objects with image and, if any, label.")
        files = [item["image"]] if isinstance(item["image"], str) else list(item["image"])
        if len(files) != len(modalities):
            raise ValueError(
                f"{path} lists {len(files)} image files for a case, but `modalities` has {len(modalities)}."
            )
        subject: Subject = {"image": [str(_inside(path.parent, name, path)) for name in files]}
        subject |= {key: str(_inside(path.parent, item[key], path)) for key in ("label", "brain_mask") if item.get(key)}
        subjects.append({"case": _plain_name(item.get("case") or _case_name(Path(files[0])), path), **subject})
    if not subjects:
        raise ValueError(f"{path} lists no case: give lists of objects with image and, if any, label.")
    return _each_once(subjects, path)


def _plain_name(case: object, source: object) -> str:
    """A case's name, which becomes that of a folder."""
    name = str(case)
    if name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"{source} has the case name {name!r}: use a name without slashes and without a leading dot.")
    return name


def _is_whole(path: str, image: nib.spatialimages.SpatialImage) -> bool:
    """Whether a file holds all the voxels that its header announces."""
    expected = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if not path.endswith(".gz"):
        return os.path.getsize(path) >= expected
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") == expected % 2**32:  # the size that gzip notes at the end
            return True
    try:
        with gzip.open(path) as file:
            size = 0
            while block := file.read(1 << 22):
                size += len(block)
        return size >= expected
    except (OSError, EOFError):
        return False


def read_header(path: str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (H, W, D) and affine (4, 4) of a NIfTI volume, from its header.

    Raises:
        ValueError: When the file is no NIfTI volume, is cut short, or has an affine that fixes no space.
    """
    try:
        image = nib.load(path)
        shape, affine = tuple(image.shape), np.asarray(image.affine, dtype=float)
        whole, kind = _is_whole(path, image), image.get_data_dtype()
    except FileNotFoundError:
        raise FileNotFoundError(f"No file {path}: check its name in the datalist or `image`.") from None
    except Exception as error:
        raise ValueError(
            f"{path} is not a NIfTI file that can be read ({type(error).__name__}): export it again."
        ) from None
    if not whole:
        raise ValueError(f"{path} is cut short: it holds fewer voxels than its header says; copy it again.")
    if kind.kind not in "biuf":
        raise ValueError(f"{path} holds voxels of type {kind}, expected one real number a voxel: export it again.")
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}, expected a volume (H, W, D): give one 3-D volume a file.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(
            f"{path} has an affine that maps voxels to no space (singular or not finite): repair its header."
        )
    return shape, affine


def _axial_slices(shape: tuple[int, int, int], affine: np.ndarray) -> int:
    orientation = nib.orientations.io_orientation(affine)
    return shape[int(np.flatnonzero(orientation[:, 0] == 2)[0])]


def _check_slice_range(slice_range: object) -> None:
    if slice_range is None:
        return
    pair = isinstance(slice_range, Sequence) and len(slice_range) == 2
    if not pair or not all(type(k) is int for k in slice_range) or not 0 <= slice_range[0] < slice_range[1]:
        raise ValueError(
            "`slice_range` must be [first, after the last] of whole numbers with 0 <= first < after the last, got "
            f"{slice_range}."
        )


def check_subjects(subjects: Sequence[Subject], slice_range: Sequence[int] | None = None) -> None:
    """Read the headers of all scans and refuse what later steps cannot use.

    Args:
        subjects: What `find_subjects` found.
        slice_range: First axial slice, and the one after the last, that will be used; None: all.

    Raises:
        ValueError: When files of a scan differ in shape or affine, or the range leaves the volume.
    """
    _check_slice_range(slice_range)
    for subject in subjects:
        files = [*subject["image"], *(subject[key] for key in ("label", "brain_mask") if key in subject)]
        shape, affine = read_header(files[0])
        for path in files[1:]:
            other_shape, other_affine = read_header(path)
            if other_shape != shape:
                raise ValueError(
                    f"{path} has shape {other_shape}, but {files[0]} has {shape}: resample one to the other."
                )
            if not np.allclose(other_affine, affine, atol=1e-3):
                raise ValueError(f"{path} has another affine than {files[0]}: resample one to the other.")
        slices = _axial_slices(shape, affine)
        if slice_range is not None and slice_range[1] > slices:
            raise ValueError(
                f"{files[0]} has {slices} axial slices, so `slice_range` {list(slice_range)} leaves it: choose a range "
                f"within [0, {slices}], or null for all slices."
            )


def read_slices(
    dataset_dir: str | os.PathLike, split: str, modalities: Sequence[str] | None = None
) -> list[dict[str, object]]:
    """List the slices that preprocessing wrote for one split.

    Args:
        dataset_dir: The folder that holds its datalist.json.
        split: "training", "validation" or "testing".
        modalities: What the model takes; the slices must hold the same.

    Returns:
        For each slice ``case``, ``slice``, ``field_of_view`` (height and width in mm), ``position`` (z in mm) and the
        files ``image``, ``brain_mask`` and, if any, ``label``.

    Raises:
        FileNotFoundError: When there is no datalist, or a file of it is gone.
        ValueError: When the split is missing or empty, or holds other modalities.
    """
    root = _existing_folder(dataset_dir)
    path = root / DATALIST
    if not path.is_file():
        raise FileNotFoundError(f"No {DATALIST} in {root}: make it with configs/preprocess.json, or set `dataset_dir`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = content.get(split) or []
        found = content.get("modalities")
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is no datalist: make it again with configs/preprocess.json.") from None
    if not items:
        raise ValueError(f"{path} has no slice for {split}: run configs/preprocess.json with `split_{split}` set.")
    if modalities is not None and list(modalities) != list(found or []):
        raise ValueError(
            f"{root} holds the modalities {found}, but `modalities` is {list(modalities)}: set it to match."
        )
    slices = []
    for item in items:
        if not isinstance(item, dict) or not {"case", "slice", "image", "brain_mask"} <= item.keys():
            raise ValueError(f"{path} is no datalist of slices: make it again with configs/preprocess.json.")
        files = {key: str(_inside(root, item[key], path)) for key in ("image", "brain_mask", "label") if item.get(key)}
        missing = next((file for file in files.values() if not os.path.isfile(file)), None)
        if missing:
            raise FileNotFoundError(f"{path} lists {missing}, which is gone: run configs/preprocess.json again.")
        known = {key: item[key] for key in ("case", "slice", "field_of_view", "position") if key in item}
        slices.append({**known, **files})
    return slices


def common_field_of_view(slices: Sequence[Mapping[str, object]]) -> tuple[float, float]:
    """Height and width of the slices in mm, the median over them; zeros where no slice tells its own."""
    sizes = [item["field_of_view"] for item in slices if "field_of_view" in item]
    return tuple(map(statistics.median, zip(*sizes, strict=True))) if sizes else (0.0, 0.0)


def covered_planes(slices: Sequence[Mapping[str, object]]) -> tuple[float, float]:
    """Lowest and highest position of the slices in mm; inf and -inf where no slice tells its own."""
    positions = [item["position"] for item in slices if "position" in item]
    return (min(positions), max(positions)) if positions else (math.inf, -math.inf)
