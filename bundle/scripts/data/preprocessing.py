"""From a folder of scans to scaled slices on disk: parallel over subjects, resumable, nothing half written."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..common.batch import ends_all, raise_failed
from ..common.checks import check_settings
from ..common.errors import innermost_message
from ..common.files import check_writable, has_ended, keep_beside, watch, write_json
from ..common.ownership import (
    begin,
    check_claim,
    check_no_link,
    check_unchanged,
    lock_folder,
    read_record,
    settle,
    unlock_folder,
)
from ..common.paths import bundle_root
from ..common.share import by_the_first
from .layouts import subject_of as person_of
from .scans import Scan as Subject
from .scans import find_scans, without
from .slices import DATALIST, SPLITS, read_slices
from .subject_slices import (
    SELECTIONS,
    STEP,
    WriteSlices,
    check_places,
    entries_of,
    fingerprint_of,
    finished_record,
    put_in_place,
    tell_full_disk,
)

logger = logging.getLogger(__name__)

PARTIAL = ".partial_slices."


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
        dataset_dir: Folder of scans or datalist, see `find_scans`.
        modalities: File name endings.
        splits: For each split a split file, a list of names, or None to leave it out.
        slice_selection: For each split one of "healthy", "largest_lesion", "all".
        slice_range: First slice of a plane and the one after the last; None: all.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks, or None.
        allow_outside: As in `find_scans`.
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
        found[split] = find_scans(
            dataset_dir,
            modalities,
            split=splits[split],
            label=label,
            brain_mask=None if brain_mask == "auto" else brain_mask,
            allow_outside=allow_outside,
            slice_range=slice_range,
            planes=planes,
        )
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
    return {split: [subject for subject in left if owner[person_of(subject["case"])] == split] for split in found}


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
        dataset_dir: Folder of scans or datalist, see `find_scans`.
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
        allow_outside: As in `find_scans`.
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
    _check_selection(slice_selection, [split for split, value in splits.items() if value is not None])
    check_settings(planes=planes)
    scans: dict[str, Any] = {"label": label, "brain_mask": brain_mask}
    scans |= {"allow_outside": allow_outside, "exclude": exclude}
    where: dict[str, Any] = {"slice_range": slice_range, "planes": planes}
    subjects = plan(dataset_dir, modalities, splits, slice_selection, **where, **scans)
    how: dict[str, Any] = {**where, "num_workers": num_workers, "slice_step": slice_step, "strip": brain_mask == "auto"}
    return write_slices(subjects, output_dir, modalities, transform, settings, slice_selection, **how)


def _check_selection(slice_selection: Mapping[str, str], made: Sequence[str]) -> None:
    chosen = {**dict.fromkeys(made), **slice_selection}
    if not chosen.keys() <= {*SPLITS} or not {*chosen.values()} <= {*SELECTIONS}:
        raise ValueError(
            f"`slice_selection` must give one of {', '.join(SELECTIONS)} for each of {', '.join(SPLITS)}, got "
            f"{dict(slice_selection)}."
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
        item["fingerprint"] = fingerprint_of(item, {**noted, "selection": item["selection"]})
    unlabeled = sum("label" not in item for item in items if item["selection"] == "healthy")
    if unlabeled:
        logger.info(f"{unlabeled} subjects have no lesion mask: all their slices count as healthy.")
    waiting = [item for item in items if not finished_record(output, item)]
    check_places(output, waiting)
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
            with tell_full_disk(output):
                put_in_place(finished, output / item["split"] / item["case"], temporary)
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
        if noted is None:
            keep_beside(path)
        else:
            path.unlink()
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
        records = [finished_record(output, item) for item in members]
        left_out = [item["case"] for item, record in zip(members, records, strict=True) if not record["slices"]]
        content[split] = [
            entry for item, record in zip(members, records, strict=True) for entry in entries_of(item, record)
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
    config = ConfigParser(ConfigParser.load_config_file(os.path.join(bundle_root(), "configs", "preprocess.json")))
    config["brain_mask"] = "auto"
    settings = {key: config[key] for key in ("upper_fraction", "lower_fraction", "lower_over_volume")}
    transform = config.get_parsed_content("preprocessing")
    subjects = {split: find_scans(scans, modalities, slice_range=slice_range)}
    selection = {split: "healthy"}
    by_the_first(write_slices)(
        subjects, output_dir, modalities, transform, settings, selection, slice_range, num_workers=0, strip=True
    )
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
