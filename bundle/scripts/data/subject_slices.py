"""The slices of one subject: which are taken, the files they are saved in, and the record of these."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.utils import affine_to_spacing
from torch import Tensor

from ..common.files import keep_beside, not_empty
from ..common.ownership import check_no_link, check_unchanged, content_digest, read_record
from ..method.volume import PLANES
from .brain import lesion_of
from .scans import Scan

SELECTIONS = ("healthy", "largest_lesion", "all")
RECORD = "subject.json"
STEP = "preprocess"


def select_slices(
    brain_mask: np.ndarray,
    label: np.ndarray | None,
    selection: str,
    slice_range: Sequence[int] | None = None,
    slice_step: int = 1,
    smallest_brain_fraction: float = 0.02,
) -> list[int]:
    """Choose slices of a scan along its last axis.

    Args:
        brain_mask: Brain voxels (H, W, D), bool.
        label: Lesion voxels (H, W, D), bool, or None where no lesion is known.
        selection: "healthy" keeps slices without lesion, "largest_lesion" the one slice with the most lesion voxels,
            "all" every slice.
        slice_range: First slice and the one after the last; None: all.
        smallest_brain_fraction: Slices whose brain covers less than this part of them are left out.

    Returns:
        Slice numbers; none where the scan has no slice of the kind.

    Raises:
        ValueError: When ``selection`` is none of the three.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"`slice_selection` must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
    first, last = slice_range if slice_range is not None else (0, brain_mask.shape[2])
    slices = [k for k in range(first, last, slice_step) if brain_mask[:, :, k].mean() >= smallest_brain_fraction]
    lesion = np.zeros(brain_mask.shape[2], dtype=int) if label is None else label.sum(axis=(0, 1))
    if selection == "healthy":
        return [k for k in slices if lesion[k] == 0]
    if selection == "largest_lesion":
        largest = max(slices, key=lambda k: lesion[k], default=None)
        return [] if largest is None or lesion[largest] == 0 else [largest]
    return slices


def fingerprint_of(subject: Scan, settings: Mapping[str, Any]) -> str:
    """A hash of what fixes the slices of a subject: the settings, and its files' names, sizes and times."""
    files = [*subject["image"], *(subject[key] for key in ("label", "brain_mask") if key in subject)]
    stats = [(os.path.basename(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([settings, stats], sort_keys=True).encode()).hexdigest()


class WriteSlices:
    """Last step of a subject: save its chosen slices in a temporary folder, which the main process puts in place.

    So a subject's own folder appears complete or not at all, and workers that outlive a killed run touch none.

    Args:
        temporary: The folder of the temporary folders; it exists as long as the run.
        slice_range: First slice of a plane and the one after the last; None: all.
        planes: "axial", "coronal", "sagittal".
        slice_step: Every which slice.
    """

    def __init__(
        self,
        temporary: str | os.PathLike,
        slice_range: Sequence[int] | None,
        planes: Sequence[str] = ("axial",),
        slice_step: int = 1,
    ):
        self.temporary = Path(temporary)
        self.slice_range, self.slice_step = slice_range, slice_step
        self.planes = planes

    def __call__(self, data: Mapping[str, Any]) -> str:
        """Save ``image``, ``brain_mask`` and ``label``, (C, H, W, D), and the record; gives their folder.

        Raises:
            ValueError: When the label has voxels that are no number, or does not fit.
            OSError: When nothing can be written any more.
        """
        _check_label(data)
        volumes = {key: np.asarray(data[key]) for key in ("image", "brain_mask", "label") if key in data}
        if "label" in data:
            volumes["label"] = lesion_of(data["label"], data["case"]).numpy()
        folder = self.temporary / data["case"]
        record = {"fingerprint": data["fingerprint"], "keys": sorted(volumes), "slices": []}
        common = robust_scale(volumes["image"], volumes["brain_mask"][0] > 0)
        with tell_full_disk(self.temporary.parent):
            folder.mkdir()
            for plane in self.planes:
                slices = self._write_plane(folder, plane, volumes, data["image"].affine, data["selection"])
                record["slices"] += [{**entry, **common} for entry in slices]
            record["files"] = content_digest(folder)
            (folder / RECORD).write_text(json.dumps(record))
        return str(folder)

    def _write_plane(
        self, folder: Path, plane: str, volumes: Mapping[str, np.ndarray], affine: Tensor, selection: str
    ) -> list[dict[str, object]]:
        """Save the chosen slices of one plane, and give what the datalist says of each."""
        axis, order = PLANES[plane]
        across = {key: volume.transpose(0, *(1 + k for k in (*order, axis))) for key, volume in volumes.items()}
        label = across["label"][0] if "label" in across else None
        chosen = select_slices(across["brain_mask"][0], label, selection, self.slice_range, self.slice_step)
        spacing = affine_to_spacing(affine)
        size = zip(across["image"].shape[1:3], order, strict=True)
        field_of_view = [round(float(pixels * spacing[k]), 3) for pixels, k in size]
        for k in chosen:
            for key, volume in across.items():
                array = volume[..., k].astype(np.float32 if key == "image" else np.uint8, order="C")
                _save_array(folder / f"{_stem(plane, k)}_{key}.npy", array)
        position = [round(float(affine[axis, axis] * k + affine[axis, 3]), 3) for k in chosen]
        same = {"plane": plane, "field_of_view": field_of_view}
        return [{"slice": k, **same, "position": mm} for k, mm in zip(chosen, position, strict=True)]


def robust_scale(image: np.ndarray, brain_mask: np.ndarray) -> dict[str, list[float]]:
    """Measure a scan's brain, for its datalist entries.

    Args:
        image: (M, H, W, D).
        brain_mask: (H, W, D), bool.

    Returns:
        ``median`` and ``deviation`` (1.4826 times the median absolute deviation) of each modality.
    """
    inside = image[:, brain_mask]
    median = np.median(inside, axis=1)
    deviation = 1.4826 * np.median(np.abs(inside - median[:, None]), axis=1)
    return {"median": np.round(median, 5).tolist(), "deviation": np.round(np.maximum(deviation, 1e-3), 5).tolist()}


def _stem(plane: str, k: int) -> str:
    """How the files of a slice begin."""
    return f"{k:03d}" if plane == "axial" else f"{plane}_{k:03d}"


def _check_label(data: Mapping[str, Any]) -> None:
    if "label" in data and data["label"].shape[1:] != data["image"].shape[1:]:
        raise ValueError(
            f"{data['case']} has a lesion mask of shape {list(data['label'].shape[1:])}, but voxels "
            f"{list(data['image'].shape[1:])}: resample it."
        )


def _save_array(path: Path, array: np.ndarray) -> None:
    """`np.save`, which does not notice when the last few kilobytes of a file find no room on the disk."""
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(content.getvalue())


@contextmanager
def tell_full_disk(output: Path) -> Iterator[None]:
    """Say in one sentence what a full disk or a folder that became read-only means."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Cannot write in {output} any more ({error.strerror or 'the disk may be full'}): remedy that, and run the "
            "same command again to go on."
        ) from None


def _is_own_name(name: str) -> bool:
    return name == RECORD or re.fullmatch(r"([a-z]+_)?\d{3,}_(image|brain_mask|label)\.npy", name) is not None


def _foreign(folder: Path) -> Path | None:
    """What is in the place of a subject's slices and was not written by preprocessing: a file, or the folder itself."""
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink() or not folder.is_dir():
        return folder
    files = sorted(folder.iterdir())
    own = [path for path in files if path.is_file() and not path.is_symlink() and _is_own_name(path.name)]
    other = next((path for path in files if path not in own), None)
    if other is not None or not files:
        return other
    record = folder / RECORD
    recorded = record in files and (len(files) > 1 or "fingerprint" in read_record(record))
    return None if recorded else files[0]


def check_places(output: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to begin where the slices of a subject would replace what preprocessing did not write, or was changed."""
    for item in items:
        folder = output / item["split"] / item["case"]
        check_no_link([folder.parent])
        other = _foreign(folder)
        if other is not None:
            raise ValueError(
                f"{other} is in the way, which preprocessing did not write: move it, or set another `output_dir`."
            )
        noted = _noted_files(folder)
        for path in sorted(folder.iterdir()) if noted else ():
            if path.name != RECORD:
                check_unchanged(path, noted.get(path.name) or "none", STEP)


def _noted_files(folder: Path) -> dict[str, Any]:
    """The SHA-256 of each file of a subject's folder; empty where its record is damaged, or of an older version."""
    files = read_record(folder / RECORD).get("files")
    return files if isinstance(files, dict) else {}


def put_in_place(finished: str, folder: Path, temporary: Path) -> None:
    """Move a subject's new folder to its place, and the earlier one, if any, to the temporary folder.

    One whose record does not say what its files hold may be a person's: it is kept beside where it is another.
    """
    folder.parent.mkdir(exist_ok=True)
    if os.path.lexists(folder):
        check_places(folder.parent.parent, [{"split": folder.parent.name, "case": folder.name}])
        if _noted_files(folder) or _holds_no_more(folder, finished):
            os.replace(folder, temporary / f"{folder.name}.earlier")
        else:
            print(f"{folder} has no record of what its files held: it is kept as {keep_beside(folder).name}.")
    os.replace(finished, folder)


def _holds_no_more(folder: Path, finished: str) -> bool:
    """Whether each file of a subject's folder, but its record, is in another one too."""
    own, other = content_digest(folder), content_digest(finished)
    assert isinstance(own, dict) and isinstance(other, dict)
    return all(name == RECORD or other.get(name) == digest for name, digest in own.items())


def finished_record(output_dir: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a subject that is finished with the same settings and files; empty where it is not."""
    record = read_record(output_dir / item["split"] / item["case"] / RECORD)
    if record.get("fingerprint") != item["fingerprint"]:
        return {}
    try:
        files = [entry[key] for entry in entries_of(item, record) for key in record["keys"]]
        complete = all("median" in entry for entry in record["slices"])
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:  # of an older version, or damaged
        return {}
    return record if all(not_empty(output_dir / file) for file in files) else {}


def entries_of(item: Mapping[str, Any], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the datalist says of a subject's slices."""
    folder = f"{item['split']}/{item['case']}"
    return [
        {
            "case": item["case"],
            **entry,
            **{key: f"{folder}/{_stem(entry['plane'], entry['slice'])}_{key}.npy" for key in record["keys"]},
        }
        for entry in record["slices"]
    ]
