"""The slices on disk, as preprocessing lists them in its datalist."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..common.checks import is_text
from ..common.ownership import file_digest
from ..method.refinement import SCALING
from ..method.volume import PLANES
from .lists import existing_folder, inside, read_json, shown

DATALIST = "datalist.json"
SPLITS = ("training", "validation", "testing")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


SLICE_ENTRIES = {  # what preprocessing notes of a slice; the last three it did not always note
    "case": is_text,
    "slice": lambda value: type(value) is int and 0 <= value < 2**31,
    "image": lambda value: isinstance(value, str),
    "brain_mask": lambda value: isinstance(value, str),
    "label": lambda value: value is None or isinstance(value, str),
    "position": lambda value: value is None or _is_number(value),
    "median": lambda value: value is None or (isinstance(value, list) and all(map(_is_number, value))),
    "deviation": lambda value: (
        value is None or (isinstance(value, list) and all(_is_number(spread) and spread > 0 for spread in value))
    ),
    "plane": lambda value: value is None or (isinstance(value, str) and value in PLANES),
    "field_of_view": lambda value: (
        value is None
        or (isinstance(value, list) and len(value) == 2 and all(_is_number(mm) and 0 <= mm <= 10_000 for mm in value))
    ),
}
KNOWN = ("case", "slice", "plane", "field_of_view", "position", "median", "deviation")


def read_slices(
    dataset_dir: str | os.PathLike | Sequence[str], split: str, modalities: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """List the slices that preprocessing wrote for one split.

    Args:
        dataset_dir: The folder that holds its datalist.json, or several, whose slices are joined.
        split: "training", "validation" or "testing".
        modalities: What the model takes; the slices must hold the same.

    Returns:
        For each slice ``case``, ``slice``, ``plane``, ``field_of_view`` (height and width in mm), ``position`` (mm,
        along the axis across it; z of axial slices), ``median`` and ``deviation`` of the scan's brain, ``certain``
        (whether it holds no lesion for certain) and the files ``image``, ``brain_mask`` and, if any, ``label``.

    Raises:
        FileNotFoundError: When there is no datalist, or a file of it is gone.
        ValueError: When the split is missing or empty, holds other modalities, or a file that is no slice.
    """
    folders = folders_of(dataset_dir)
    return [item for folder in folders for item in _read_folder(folder, split, modalities)]


def folders_of(dataset_dir: str | os.PathLike | Sequence[str]) -> list[str | os.PathLike]:
    """One folder of slices, or several, as a list."""
    return [dataset_dir] if isinstance(dataset_dir, (str, os.PathLike)) else list(dataset_dir)


def _read_folder(
    dataset_dir: str | os.PathLike, split: str, modalities: Sequence[str] | None
) -> list[dict[str, object]]:
    root = existing_folder(dataset_dir)
    path = root / DATALIST
    if not path.is_file():
        raise FileNotFoundError(f"No {DATALIST} in {root}: make it with configs/preprocess.json, or set `dataset_dir`.")
    content = read_json(path, "what configs/preprocess.json wrote")
    if not isinstance(content, dict) or not isinstance(content.get(split) or [], list):
        raise ValueError(f"{path} is no datalist: make it again with configs/preprocess.json.")
    items, found = content.get(split) or [], content.get("modalities") or []
    if not items:
        raise ValueError(f"{path} has no slice for {split}: run configs/preprocess.json with `split_{split}` set.")
    if modalities is not None and list(modalities) != found:
        raise ValueError(
            f"{root} holds the modalities {shown(found)}, but `modalities` is {list(modalities)}: set it to match."
        )
    slices = []
    for item in items:
        if not isinstance(item, dict) or not all(fits(item.get(key)) for key, fits in SLICE_ENTRIES.items()):
            raise ValueError(f"{path} is no datalist of slices: make it again with configs/preprocess.json.")
        files = {key: str(inside(root, item[key], path)) for key in ("image", "brain_mask", "label") if item.get(key)}
        missing = next((file for file in files.values() if not os.path.isfile(file)), None)
        if missing:
            raise FileNotFoundError(f"{path} lists {missing}, which is gone: run configs/preprocess.json again.")
        _check_planes(files, len(modalities) if modalities is not None else None)
        known = {key: item[key] for key in KNOWN if item.get(key) is not None}
        slices.append({**known, "certain": bool(content.get("certainly_healthy", False)), **files})
    return slices


def read_source(
    dataset_dir: str | os.PathLike | Sequence[str] | None, modalities: Sequence[str] | None = None
) -> dict[str, Any]:
    """Read from the datalists what a model of their slices must know of them.

    Args:
        dataset_dir: Folder of slices, or several. One without a datalist may still be trained on: MONAI Label gives
            scans instead. None: there are none.
        modalities: What the caller expects; None: as the first datalist says, ``["flair"]`` where there is none.

    Returns:
        ``modalities``, and ``scaling``: how preprocessing scaled them.

    Raises:
        ValueError: When a datalist has other modalities.
    """
    scaling: dict[str, object] = {}
    for folder in folders_of(dataset_dir if dataset_dir is not None else []):
        path = Path(folder) / DATALIST
        content = read_json(path, "the folder that preprocess.json wrote") if path.is_file() else {}
        found = content if isinstance(content, dict) else {}
        noted = found.get("modalities", modalities or ["flair"])
        if modalities is not None and list(modalities) != list(noted):
            raise ValueError(
                f"{path} holds slices of {', '.join(map(str, noted))}, but `modalities` is {', '.join(modalities)}: "
                "leave it out, or preprocess again."
            )
        modalities, scaling = noted, scaling or {name: found.get(name, value) for name, value in SCALING.items()}
    return {"modalities": modalities or ["flair"], "scaling": scaling or dict(SCALING)}


def slices_digest(slices: Sequence[Mapping[str, Any]]) -> str | None:
    """SHA-256 of all that slices hold and what is known of them, wherever their files lie.

    Args:
        slices: As `read_slices` lists them.

    Returns:
        The digest; None where one is a whole scan, as MONAI Label gives them.
    """
    if not all("slice" in item for item in slices):
        return None
    total = hashlib.sha256()
    for item in slices:
        files = {key: file_digest(item[key]) for key in ("image", "brain_mask", "label") if key in item}
        total.update(json.dumps([{key: item[key] for key in (*KNOWN, "certain") if key in item}, files]).encode())
    return total.hexdigest()


def _check_planes(files: Mapping[str, str], modalities: int | None) -> None:
    """Refuse files of a slice that hold no arrays (C, H, W) of numbers of one size; reads their headers alone."""
    sizes = {}
    for key, file in files.items():
        channels = modalities if key == "image" else 1
        try:
            plane = np.load(file, mmap_mode="r", allow_pickle=False)
            kind, shape = plane.dtype.kind, plane.shape
        except Exception as error:
            raise ValueError(
                f"{file} is no slice that can be read ({type(error).__name__}): run configs/preprocess.json again."
            ) from None
        if kind not in "biuf" or len(shape) != 3 or channels not in (None, shape[0]) or 0 in shape:
            raise ValueError(
                f"{file} holds {kind!r} of shape {shape}, expected numbers ({channels or 'C'}, H, W): run "
                "configs/preprocess.json again."
            )
        sizes[file] = shape[1:]
    if len({*sizes.values()}) > 1:
        raise ValueError(f"{next(iter(sizes))} and its masks differ in size: run configs/preprocess.json again.")


def common_field_of_view(slices: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Height and width of the slices in mm, the median over them; zeros where no slice tells its own."""
    sizes = [item["field_of_view"] for item in slices if "field_of_view" in item]
    return tuple(map(statistics.median, zip(*sizes, strict=True))) if sizes else (0.0, 0.0)


def covered_planes(slices: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Lowest and highest position of axial slices in mm; inf and -inf where they do not tell, or hold all levels."""
    if any(item.get("plane", "axial") != "axial" for item in slices):
        return math.inf, -math.inf
    positions = [item["position"] for item in slices if "position" in item]
    return (min(positions), max(positions)) if positions else (math.inf, -math.inf)
