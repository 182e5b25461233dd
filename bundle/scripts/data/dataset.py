"""The slices of scans as a data set: computed once, kept in a folder on disk, and read from there."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.transforms import Transform
from monai.utils import ensure_tuple
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..common.case_runner import raise_failed
from ..common.errors import innermost_message
from ..common.outputs import check_writable, save_tensors
from .layouts import subject_of
from .lists import read_split
from .scans import find_scans, without

SPLITS = ("training", "validation", "testing")
VALIDATION_EVERY = 8  # subjects, where no list says which validate
SEEDS_OF_A_HEAD, SEEDS_OF_A_RUN = 1009, 100_003  # primes, so that volumes share no seed
FIRST_HEAD = {"training": 0, "validation": 500, "testing": 2000}  # in the row of seeds of a run
FILES = ("image", "brain_mask", "label", "label_map")


def scans_of_split(
    dataset_dir: str | Sequence[str] | None,
    split: str,
    modalities: Sequence[str],
    splits: Mapping[str, Any] | None = None,
    label: str | None = "seg",
    brain_mask: str | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The scans of one split: those that a list names, or else every eighth subject validates and the others train.

    Args:
        dataset_dir: Folder of scans, see `find_scans`, or several; None: no scans.
        split: "training", "validation" or "testing".
        modalities: File name endings.
        splits: For each split a file with a name a line, or a list of names; where it has neither, the file
            ``split_<split>.txt`` of each folder counts, if it is there.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks, or None.
        allow_outside: As in `find_scans`.
        exclude: Likewise.

    Returns:
        The scans, with ``error`` where one cannot be used; none where a folder has lists, but not of this split.

    Raises:
        ValueError: When a subject is in two splits, or no scan can be used.
    """
    found: list[dict[str, Any]] = []
    options: dict[str, Any] = {"label": label, "brain_mask": brain_mask, "allow_outside": allow_outside}
    for folder in [dataset_dir] if isinstance(dataset_dir, str) else dataset_dir or ():
        lists = {name: _split_list(folder, name, (splits or {}).get(name)) for name in SPLITS}
        if any(lists.values()):
            _check_apart(lists)
            scans = find_scans(folder, modalities, split=lists[split], **options) if lists[split] else []
        elif split != "testing":
            scans = find_scans(folder, modalities, **options)
            subjects = sorted({subject_of(scan["case"]) for scan in scans})
            validation = {*subjects[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]} or {subjects[-1]}
            wanted = validation if split == "validation" else {*subjects} - validation
            scans = [scan for scan in scans if subject_of(scan["case"]) in wanted]
        else:
            scans = []
        found += [{**scan, "source": str(folder)} for scan in scans]
    return without(found, exclude, dataset_dir) if found else []


def _split_list(folder: str, split: str, given: Any) -> list[str] | None:
    """The names of a split: given, or those of the folder's own file."""
    file = Path(folder) / f"split_{split}.txt"
    if given is None and not file.is_file():
        return None
    return read_split(str(file) if given is None else given)


def _check_apart(lists: Mapping[str, list[str] | None]) -> None:
    owner: dict[str, str] = {}
    for split, names in lists.items():
        for subject in {subject_of(name) for name in names or ()}:
            if owner.setdefault(subject, split) != split:
                raise ValueError(f"{subject} is in the splits {owner[subject]} and {split}: list it in one of them.")


def synthetic_scans(
    label_maps_dir: str | Sequence[str] | None,
    split: str,
    volumes_per_head: int = 4,
    validation_heads: int = 2,
    testing_heads: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """List the volumes that `RandLabelToImaged` is to paint from label maps; they hold no lesion for certain.

    Args:
        label_maps_dir: Folder with a NIfTI label map for each head, or several; None: no volumes.
        split: "training", "validation" or "testing".
        volumes_per_head: Each is drawn anew.
        validation_heads: Of each folder, the heads before those for testing.
        testing_heads: Of each folder, the last heads.
        seed: Of all that is drawn.

    Returns:
        For each volume its ``case``, the file ``label_map``, ``certain``, which is true, and its ``seed``, which is
        that of no other of any split, in runs with ``seed`` 0 to 9 of up to 110 volumes a head and 390 heads a split.

    Raises:
        FileNotFoundError: When there is no such folder.
        ValueError: When no head is left to train on.
    """
    folders = [label_maps_dir] if isinstance(label_maps_dir, str) else label_maps_dir or ()
    heads = [(folder, path) for folder in folders for path in _heads(folder, split, validation_heads, testing_heads)]
    return [
        {
            "case": f"synthetic_{split}_{head:02d}_{draw}",
            "label_map": str(path),
            "seed": seed * SEEDS_OF_A_RUN + (FIRST_HEAD[split] + head) * SEEDS_OF_A_HEAD + draw,
            "certain": True,
            "source": str(folder),
        }
        for head, (folder, path) in enumerate(heads)
        for draw in range(volumes_per_head)
    ]


def _heads(folder: str, split: str, validation: int, testing: int) -> list[Path]:
    """The label maps of a split: the last ones of a folder are for testing, those before them for validation."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"No folder {folder}: set --label_maps_dir to a folder of FreeSurfer label maps.")
    maps = sorted(path for path in Path(folder).iterdir() if path.name.endswith((".nii", ".nii.gz")))
    training = len(maps) - validation - testing
    if training < 1 or validation < 0 or testing < 0:
        raise ValueError(
            f"{folder} holds {len(maps)} label maps, of which {validation} are to validate and {testing} to test on: "
            "leave at least one to train on."
        )
    known = training + validation
    return {"training": maps[:training], "validation": maps[training:known], "testing": maps[known:]}[split]


class SliceDataset(Dataset):
    """All slices of some scans under one index.

    A scan is computed once. Its slices are kept in a file of ``cache_dir`` whose name holds a checksum of the scan's
    dictionary, of name, size and time of its files, and of the transform's options; where one of them changes, the
    slices are computed anew. The files are complete or not there, so a run that was interrupted goes on.

    Args:
        data: Scans, as `scans_of_split` and `synthetic_scans` list them.
        transform: Loads a scan and cuts it into slices: ends with a list of dictionaries, as that of `SlicesOfScand`.
        cache_dir: The folder; it is made. None: the slices are kept in memory.
        num_workers: Threads that compute scans; 0: this one.
        name: What the slices are for, in messages.
        modalities: Of scans that are listed by their files alone, as MONAI Label gives them.

    Attributes:
        scans: The slices of each scan: dictionaries of tensors, texts and numbers.
        listed: Whether the scans were listed by their files alone.

    Raises:
        ValueError: When no scan has a slice.
        RuntimeError: When scans failed; the slices of the others are in the folder then.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        cache_dir: str | None = None,
        num_workers: int = 0,
        name: str = "training",
        modalities: Sequence[str] = ("flair",),
    ):
        self.name = name
        self.listed = not all("case" in scan for scan in data)
        scans = find_scans(data, modalities) if self.listed else data
        self.data = [{"certain": False, **scan} for scan in scans]
        if not self.data:
            raise ValueError(f"No scan for {name}: set `dataset_dir`, or list more scans for this split.")
        with idist.one_rank_first():  # the others find what the first has computed
            self.scans = self._slices(transform, cache_dir, num_workers)
        self.index = [(scan, k) for scan, slices in enumerate(self.scans) for k in range(len(slices))]
        if not self.index:
            raise ValueError(
                f"No slice of the wanted kind in any of the {len(self.data)} {name} scans: widen `slice_range`, or "
                "choose other scans."
            )

    def _slices(
        self, transform: Callable[[Any], Any], cache_dir: str | None, num_workers: int
    ) -> list[list[dict[str, Any]]]:
        """The slices of each scan, from the cache where they are there."""
        failed = {str(scan["case"]): str(scan["error"]) for scan in self.data if "error" in scan}
        usable = [scan for scan in self.data if "error" not in scan]
        files: list[Path | None] = [None] * len(usable)
        if cache_dir is not None:
            options = options_of(transform)
            files = [Path(cache_dir, f"{scan['case']}_{checksum(scan, options)}.pt") for scan in usable]
        waiting = [(scan, file) for scan, file in zip(usable, files, strict=True) if not (file and file.is_file())]
        if cache_dir is not None and waiting:
            check_writable(cache_dir)
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            work = pool.map(lambda item: compute_scan(transform, *item), waiting)
            computed = [*tqdm(work, f"{self.name} scans", len(waiting), unit="scan", disable=not waiting)]
        results = zip(waiting, computed, strict=True)
        failed |= {str(scan["case"]): result for (scan, _), result in results if isinstance(result, str)}
        raise_failed(failed, len(self.data))
        return computed if cache_dir is None else [_read(file) for file in files if file]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scan, k = self.index[index]
        return dict(self.scans[scan][k])

    def weights(self, fractions: Sequence[float] | None) -> list[float] | None:
        """How often to draw each slice, so that each source of scans has its part of the draws.

        Args:
            fractions: Part of the draws for each source, in the order in which the sources are listed; None: every
                slice is drawn as often.

        Raises:
            ValueError: When there are not as many fractions as sources.
        """
        if fractions is None:
            return None
        sources = [str(scan.get("source", "")) for scan in self.data]
        names = [*dict.fromkeys(sources)]
        if len(fractions) != len(names):
            raise ValueError(
                f"`source_fractions` has {len(fractions)} numbers, but the {self.name} scans come from {len(names)} "
                f"folders ({', '.join(names)}): give one for each."
            )
        slices = Counter(sources[scan] for scan, _ in self.index)
        return [fractions[names.index(sources[scan])] / slices[sources[scan]] for scan, _ in self.index]

    @property
    def checksum(self) -> str:
        """Sixteen letters that change with the slices."""
        names = [[part["case"], part["plane"], part["slice"]] for scan in self.scans for part in scan]
        return _short_hash(names)

    def __str__(self) -> str:
        empty = sum(not slices for slices in self.scans)
        left_out = f" ({empty} scans have no slice of the wanted kind)" if empty else ""
        return f"{self.name}: {len(self)} slices of {len(self.scans) - empty} scans{left_out}"


def compute_scan(transform: Callable[[Any], Any], scan: Mapping[str, Any], file: Path | None = None) -> Any:
    """Compute the slices of a scan; its error is the result, so that the other scans go on.

    Args:
        transform: As of `SliceDataset`; several threads may use it.
        scan: What it takes.
        file: Where to write the slices; None: nowhere.

    Returns:
        The sentence of an error, or else the slices, or None where they were written.

    Raises:
        OSError: When nothing can be written any more.
    """
    try:
        slices = [_plain(part) for part in copy.deepcopy(transform)(dict(scan))]
    except Exception as error:
        return innermost_message(error)
    if file is None:
        return slices
    save_tensors(file, slices)
    return None


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    """A slice whose tensors are no `MetaTensor`, which cannot be read again without unpickling objects."""
    return {
        key: torch.as_tensor(value).as_subclass(Tensor) if isinstance(value, Tensor) else value
        for key, value in part.items()
    }


def _read(file: Path) -> list[dict[str, Any]]:
    """The slices of a file, whose tensors are read from disk when they are used."""
    try:
        return torch.load(file, mmap=True, weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): delete it, and run the command again.") from None


def options_of(value: Any) -> Any:
    """What a transform is and does, as JSON: the name of its class, what its constructor was given, and its parts."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [options_of(part) for part in value]
    if not isinstance(value, Transform):
        return str(getattr(value, "__name__", type(value).__name__))
    given = inspect.signature(type(value)).parameters
    options = {name: part for name, part in vars(value).items() if name in given or isinstance(part, Transform)}
    return [type(value).__name__, {name: options_of(part) for name, part in sorted(options.items())}]


def checksum(scan: Mapping[str, Any], options: Any) -> str:
    """Sixteen letters that change with a scan's dictionary, its files and the options of its transform."""
    files = [path for key in FILES if key in scan for path in ensure_tuple(scan[key])]
    stats = [(os.path.basename(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    rest = {key: value for key, value in scan.items() if key not in FILES}
    return _short_hash([rest, stats, options])


def _short_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
