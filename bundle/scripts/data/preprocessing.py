"""From a folder of scans to scaled slices on disk: parallel over subjects, resumable, nothing half written."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..common.batch import ends_all, raise_failed
from ..common.errors import innermost_message
from ..common.files import check_writable, has_ended, keep_beside, not_empty, watch, write_json
from ..common.ownership import (
    begin,
    check_claim,
    check_no_link,
    check_unchanged,
    content_digest,
    lock_folder,
    read_record,
    settle,
    unlock_folder,
)
from ..common.paths import bundle_root
from ..common.settings import check_settings
from ..common.share import by_the_first
from ..method.volume import PLANES
from .brain import lesion_of
from .layouts import person_of
from .scans import AUTO, Subject, find_subjects, mark_unusable, scan_subjects, without
from .slices import DATALIST, SPLITS, read_slices

logger = logging.getLogger(__name__)

SELECTIONS = ("healthy", "largest_lesion", "all")
RECORD = "subject.json"
PARTIAL = ".partial_slices."
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


def _fingerprint(subject: Subject, settings: Mapping[str, Any]) -> str:
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
        with _writing(self.temporary.parent):
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
    path.write_bytes(content.getbuffer())


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Say in one sentence what a full disk or a folder that became read-only means."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"Cannot write in {output} any more ({error.strerror or 'the disk may be full'}): remedy that, and run the "
            "same command again to go on."
        ) from None


@contextmanager
def _temporary_folder(output: Path) -> Iterator[Path]:
    """A folder in ``output`` for the time of a run; what killed runs have left is removed first."""
    for leftover in output.glob(f"{PARTIAL}*"):
        process = leftover.name.removeprefix(PARTIAL).partition(".")[0]
        ended = leftover.name == f"{PARTIAL}{process}.ended"
        if process.isdigit() and (ended or has_ended(int(process))):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = output / f"{PARTIAL}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:  # renamed first, so that no worker adds to it while it is removed
        shutil.rmtree(folder.rename(f"{folder}.ended"), ignore_errors=True)


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


def _check_places(output: Path, items: Sequence[Mapping[str, Any]]) -> None:
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


def _put_in_place(finished: str, folder: Path, temporary: Path) -> None:
    """Move a subject's new folder to its place, and the earlier one, if any, to the temporary folder.

    One whose record does not say what its files hold may be a person's: it is kept beside where it is another.
    """
    folder.parent.mkdir(exist_ok=True)
    if os.path.lexists(folder):
        _check_places(folder.parent.parent, [{"split": folder.parent.name, "case": folder.name}])
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


def _read_record(output_dir: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a subject that is finished with the same settings and files; empty where it is not."""
    record = read_record(output_dir / item["split"] / item["case"] / RECORD)
    if record.get("fingerprint") != item["fingerprint"]:
        return {}
    try:
        files = [entry[key] for entry in _entries(item, record) for key in record["keys"]]
        complete = all("median" in entry for entry in record["slices"])
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:  # of an older version, or damaged
        return {}
    return record if all(not_empty(output_dir / file) for file in files) else {}


def _entries(item: Mapping[str, Any], record: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def plan(
    dataset_dir: str,
    modalities: Sequence[str],
    splits: Mapping[str, Any],
    slice_selection: Mapping[str, str],
    slice_range: Sequence[int] | None,
    label: str | None = "seg",
    brain_mask: str | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
    planes: Sequence[str] = ("axial",),
) -> dict[str, list[Subject]]:
    """Find the subjects of each split and check all that their headers show.

    Args:
        dataset_dir: Folder of scans or datalist, see `find_subjects`.
        modalities: File name endings.
        splits: For each split a split file, a list of names, or None to leave it out.
        slice_selection: For each split one of "healthy", "largest_lesion", "all".
        slice_range: First slice of a plane and the one after the last; None: all.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks, or None.
        allow_outside: As in `find_subjects`.
        exclude: Likewise, of all splits together.
        planes: "axial", "coronal", "sagittal".

    Returns:
        The subjects of each split that is made, with ``error`` where one cannot be used.

    Raises:
        ValueError: When all splits are None, a case is in two of them, or no scan can be used.
    """
    found: dict[str, list[Subject]] = {}
    owner: dict[str, str] = {}
    for split in SPLITS:
        if splits.get(split) is None:
            continue
        found[split] = find_subjects(dataset_dir, modalities, splits[split], label, brain_mask, allow_outside)
        for subject in found[split]:
            case = subject["case"]
            person = person_of(case)
            if owner.setdefault(person, split) != split:
                raise ValueError(f"{person} is in the splits {owner[person]} and {split}: list it in one of them.")
            if slice_selection[split] == "largest_lesion" and not {"label", "error"} & subject.keys():
                raise FileNotFoundError(
                    f"{case} has no lesion mask NAME_{label}.nii.gz, which {split} needs to choose the slice with the "
                    "largest lesion: add it, or set `slice_selection`."
                )
    if not found:
        raise ValueError("All splits are null: set `split_training`, `split_validation` or `split_testing`.")
    left = without([subject for subjects in found.values() for subject in subjects], exclude, dataset_dir)
    usable = mark_unusable(left, slice_range, planes)
    return {split: [subject for subject in usable if owner[person_of(subject["case"])] == split] for split in found}


@by_the_first
def preprocess(
    dataset_dir: str,
    output_dir: str,
    modalities: Sequence[str],
    splits: Mapping[str, Any],
    transform: Callable[[dict], dict[str, Tensor]],
    settings: Mapping[str, Any],
    slice_selection: Mapping[str, str],
    slice_range: Sequence[int] | None = (70, 90),
    label: str | None = "seg",
    brain_mask: str | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
    num_workers: int | None = None,
    planes: Sequence[str] = ("axial",),
    slice_step: int = 1,
) -> dict[str, int]:
    """Write the chosen slices of all subjects and one datalist of them.

    Subjects that are finished with the same settings and files are not done again; splits that are None stay as they
    are in the datalist.

    Args:
        dataset_dir: Folder of scans or datalist, see `find_subjects`.
        output_dir: Where slices and datalist.json go.
        modalities: File name endings, in the order of the channels.
        splits: For each split a split file, a list of names, or None.
        transform: Loads a subject and gives ``image`` (M, H, W, D), ``brain_mask`` and, if any, ``label``.
        settings: What of ``transform`` changes the result, for the record.
        slice_selection: For each split one of "healthy", "largest_lesion", "all".
        slice_range: First slice of a plane and the one after the last; None: all.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks; None or "auto" where there are none. None: voxels unlike the
            background are brain; "auto": ``transform`` strips scans that still have their skull.
        allow_outside: As in `find_subjects`.
        exclude: Likewise.
        num_workers: Processes; None: one for each core, 0: this one.
        planes: Which slices are made: "axial", "coronal", "sagittal"; a scan may be a single one of them.
        slice_step: Every which slice of each plane.

    Returns:
        The number of slices of each split.

    Raises:
        ValueError: When the input is not what is expected, or no slice is left.
        RuntimeError: When single scans failed; the slices of the others are written then.
    """
    made = [split for split, value in splits.items() if value is not None]
    chosen = {**dict.fromkeys(made), **slice_selection}
    if not chosen.keys() <= {*SPLITS} or not {*chosen.values()} <= {*SELECTIONS}:
        raise ValueError(
            f"`slice_selection` must give one of {', '.join(SELECTIONS)} for each of {', '.join(SPLITS)}, got "
            f"{dict(slice_selection)}."
        )
    check_settings(planes=planes)
    subjects = plan(
        dataset_dir,
        modalities,
        splits,
        slice_selection,
        slice_range,
        label,
        brain_mask,
        allow_outside,
        exclude,
        planes,
    )
    return write_slices(
        subjects,
        output_dir,
        modalities,
        transform,
        settings,
        slice_selection,
        slice_range,
        num_workers,
        planes,
        slice_step,
        strip=brain_mask == AUTO,
    )


def write_slices(
    subjects: Mapping[str, list[Subject]],
    output_dir: str,
    modalities: Sequence[str],
    transform: Callable[[dict], dict[str, Tensor]],
    settings: Mapping[str, Any],
    slice_selection: Mapping[str, str],
    slice_range: Sequence[int] | None,
    num_workers: int | None,
    planes: Sequence[str] = ("axial",),
    slice_step: int = 1,
    strip: bool = False,
) -> dict[str, int]:
    """What `preprocess` does with the subjects of each split, once they are found and checked."""
    output = Path(output_dir)
    chosen = {"slice_range": slice_range and list(slice_range), "planes": list(planes), "slice_step": slice_step}
    settings = {"modalities": list(modalities), **chosen, **settings}
    items = [
        {**subject, "split": split, "selection": slice_selection[split]}
        for split, members in subjects.items()
        for subject in members
    ]
    failed = {item["case"]: item["error"] for item in items if "error" in item}
    number, items = len(items), [item for item in items if "error" not in item]
    noted = {**settings, "strip": True} if strip else settings
    for item in items:
        item["fingerprint"] = _fingerprint(item, {**noted, "selection": item["selection"]})
    unlabeled = sum("label" not in item for item in items if item["selection"] == "healthy")
    if unlabeled:
        logger.info(f"{unlabeled} subjects have no lesion mask: all their slices count as healthy.")
    waiting = [item for item in items if not _read_record(output, item)]
    _check_places(output, waiting)
    lock_folder(check_writable(output))
    kept = _kept_splits(output, settings, subjects)
    if len(waiting) < len(items):
        print(f"{len(items) - len(waiting)} of {len(items)} subjects are finished already.")
    with _temporary_folder(output) as temporary:
        work = Attempt(Compose([transform, WriteSlices(temporary, slice_range, planes, slice_step)]))
        failed |= _run(waiting, work, output, temporary, num_workers)
    if len(failed) == number:
        raise_failed(failed, number)
    counts = _write_datalist(output, [item for item in items if item["case"] not in failed], settings, kept)
    unlock_folder(output)
    raise_failed(failed, number)
    return counts


class Failure(str):
    """The sentence of a subject that failed."""


class Attempt:
    """Work on a subject whose errors are results, so that the other subjects go on.

    Args:
        work: Takes a subject.
    """

    def __init__(self, work: Callable[[dict], str]):
        self.work = work

    def __call__(self, item: dict) -> str:
        """What the work gives, or a `Failure`.

        Raises:
            Exception: When nothing can be written any more.
        """
        try:
            return self.work(item)
        except Exception as error:
            sentence = innermost_message(error)
            if ends_all(sentence):
                raise
            return Failure(sentence)


def _run(
    waiting: list[dict], work: Callable[[dict], str], output: Path, temporary: Path, num_workers: int | None
) -> dict[str, str]:
    """Do the work of each subject, in parallel, and put the folders that come of it in place; gives what failed."""
    failed = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores if num_workers is None else num_workers, len(waiting))
    start = partial(_start_worker, os.getpid())
    loader = DataLoader(Dataset(waiting, work), batch_size=None, num_workers=workers, worker_init_fn=start)
    results = iter(loader)
    progress = tqdm(results, desc="preprocessing", unit="subject", total=len(waiting), disable=not waiting)
    try:
        for item, finished in zip(waiting, progress, strict=True):
            if isinstance(finished, Failure):
                failed[item["case"]] = str(finished)
                continue
            with _writing(output):
                _put_in_place(finished, output / item["split"] / item["case"], temporary)
    finally:
        if workers:  # left to the garbage collector after an error, each worker holds up the end for 5 seconds
            results._shutdown_workers()  # type: ignore[attr-defined]  # private, and only where there are workers
    return failed


def _start_worker(parent: int, worker: int) -> None:
    """Let a worker use one thread, and end it when its run was killed before it started, which torch overlooks."""
    if multiprocessing.get_start_method() == "fork" and os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)


def _kept_splits(
    output: Path, settings: Mapping[str, Any], subjects: Mapping[str, list[Subject]]
) -> dict[str, list[dict]]:
    """The splits of an earlier datalist that this run does not make; one of other settings is removed at once.

    It must go before its slices are made anew: a run that ends early would leave it with slices of both settings.
    """
    path = output / DATALIST
    noted = check_claim(output, STEP, []).get(DATALIST)
    check_no_link([path])
    watch([path], unsure=[path] if noted is None else [])
    if not os.path.lexists(path):
        return {}
    before = read_record(path)
    if not settings.keys() <= before.keys():
        raise ValueError(
            f"{path} is in the way, which preprocessing did not write: move it, or set another `output_dir`."
        )
    check_unchanged(path, noted, STEP)
    if any(before.get(key) != value for key, value in settings.items()):
        print(f"{path} was made with other settings: it is made anew, with the splits of this run only.")
        keep_beside(path) if noted is None else path.unlink()
        return {}
    kept = {split: before[split] for split in SPLITS if split in before and split not in subjects}
    owner = {person_of(entry["case"]): split for split, entries in kept.items() for entry in entries}
    for split, members in subjects.items():
        for subject in members:
            person = person_of(subject["case"])
            if person in owner:
                raise ValueError(
                    f"{person} is in {split} now and in {owner[person]} of {path}: a case belongs to one split; make "
                    "both anew, or set another `output_dir`."
                )
    for split, entries in kept.items():
        cases = len({entry["case"] for entry in entries})
        print(f"{split}: {len(entries)} slices of {cases} subjects stay in {path}; without them, delete it first.")
    return kept


def _write_datalist(
    output: Path, items: list[dict], settings: Mapping[str, Any], kept: Mapping[str, list[dict]]
) -> dict[str, int]:
    """Write the datalist of all finished subjects and say what is in it."""
    content: dict[str, Any] = {**settings, **kept}
    counts = {}
    for split in dict.fromkeys(item["split"] for item in items):
        members = [item for item in items if item["split"] == split]
        records = [_read_record(output, item) for item in members]
        left_out = [item["case"] for item, record in zip(members, records, strict=True) if not record["slices"]]
        content[split] = [
            entry for item, record in zip(members, records, strict=True) for entry in _entries(item, record)
        ]
        counts[split] = len(content[split])
        if left_out:
            print(f"{split}: no slice of the kind in {', '.join(left_out)}; left out.")
        if not counts[split]:
            kind = {"healthy": "lesion-free slice", "largest_lesion": "slice with a lesion", "all": "slice of a brain"}
            raise ValueError(
                f"No {kind[members[0]['selection']]} in any of the {len(members)} {split} subjects within "
                f"`slice_range` {settings['slice_range'] or 'null'}: widen it, or choose other subjects."
            )
        print(f"{split}: {counts[split]} slices of {len(members) - len(left_out)} subjects")
    begin(output, STEP, [DATALIST])
    write_json(output / DATALIST, content)
    settle(output, STEP, [DATALIST])
    print(f"Slices: {output / DATALIST}")
    return counts


def slices_of_scans(
    scans: Sequence[Mapping[str, Any]],
    split: str,
    output_dir: str,
    modalities: Sequence[str],
    least: int,
    slice_range: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Write the lesion-free slices of whole scans, as ``configs/preprocess.json`` makes them, and list them.

    Slices of an earlier run are kept where neither a scan nor its label has changed.

    Args:
        scans: For each scan its files ``image`` (one, or one for each modality) and ``label``, the lesion mask.
        split: What the slices are for, "training" or "validation".
        output_dir: Slices and their datalist go to its folder ``<split>_slices``.
        modalities: Names of the channels.
        least: Fewer slices than this are an error.
        slice_range: First slice of a plane and the one after the last; None: all.

    Returns:
        The slices, as `read_slices` gives them.

    Raises:
        ValueError: When there is no scan, one cannot be used, or all together have too few lesion-free slices.
    """
    if not scans:
        raise ValueError(f"No labeled scan for {split}: label more scans, or set `val_split` to another part of them.")
    output_dir = os.path.join(output_dir, f"{split}_slices")
    if idist.get_rank() == 0:
        config = ConfigParser(ConfigParser.load_config_file(os.path.join(bundle_root(), "configs", "preprocess.json")))
        config["brain_mask"] = AUTO
        settings = {key: config[key] for key in ("upper_fraction", "lower_fraction", "lower_over_volume")}
        transform = config.get_parsed_content("preprocessing")
        subjects = {split: scan_subjects(scans, modalities, slice_range)}
        selection = {split: "healthy"}
        write_slices(
            subjects, output_dir, modalities, transform, settings, selection, slice_range, num_workers=0, strip=True
        )
    idist.barrier()
    slices = read_slices(output_dir, split, modalities)
    if len(slices) < least:
        raise ValueError(
            f"The {len(scans)} scans for {split} have {len(slices)} lesion-free slices, expected {least} or more: "
            "label more scans."
        )
    return slices


def slice_dataset(
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[dict], dict[str, Tensor]],
    from_scans: Callable[[Sequence[Mapping[str, Any]], str], list[dict[str, Any]]],
    split: str = "training",
    **options: Any,
) -> CacheDataset:
    """Cache slices to train on, also when whole scans are given in their place, as MONAI Label does.

    Args:
        data: Slices, as `read_slices` gives them, or scans, files under ``image`` and ``label``.
        transform: Loads a slice.
        from_scans: Makes slices of scans: `slices_of_scans` with its options.
        split: What the slices are for, "training" or "validation".
        options: More arguments of `CacheDataset`.

    Returns:
        The data set; its ``data`` are the slices.
    """
    slices = data if data and all("slice" in item for item in data) else from_scans(data, split)
    return CacheDataset(slices, transform, **options)
