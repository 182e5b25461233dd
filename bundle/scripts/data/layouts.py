"""Which file of a folder is which, in one place: the conventions that scans come in.

* A folder for each scan: ``NAME/NAME_flair.nii.gz``, with ``NAME_seg`` and the like beside it, as BraTS has it.
* Loose files: ``NAME_flair.nii.gz`` and ``NAME_seg.nii.gz`` beside each other, or, of one modality, any file.
* BIDS: ``sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-3d]_FLAIR.nii.gz``; masks lie there or in the same folders below
  ``derivatives/<pipeline>``. The case is the image's name, with all its entities: ``sub-01_acq-3d``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from .nifti import VOLUME_SUFFIXES, file_stem, is_volume_name

BIDS_ENDINGS = {
    "flair": "FLAIR",
    "t1": "T1w",
    "t2": "T2w",
    "seg": "label-lesion_mask",
    "mask": "desc-brain_mask",
    "brain": "desc-brain_mask",
}
MODALITIES = ("flair", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2star", "pd", "pdw", "dwi", "adc", "swi")
OWN_RESULT = "desc-anomaly_mask"  # lies beside the brain masks that inference writes


def endings_of(role: str) -> list[str]:
    """How the names of files of a modality, or of a kind of mask, may end, without suffix; the likeliest first."""
    return [*dict.fromkeys([role, role.lower(), role.upper(), bids_ending(role)])]


def bids_ending(role: str) -> str:
    return BIDS_ENDINGS.get(role.lower(), role)


def ending_of(stem: str, roles: Sequence[str]) -> str | None:
    """The ending, of those that the roles may have, that a file's name without suffix has."""
    return next((end for role in roles for end in endings_of(role) if stem.endswith(f"_{end}")), None)


def case_of(path: str | os.PathLike, modalities: Sequence[str]) -> str:
    """The case that a file belongs to: its name without suffix and modality."""
    name = file_stem(path)
    return name.removesuffix(f"_{ending_of(name, modalities)}") or name


def subject_of(case: str) -> str:
    """The subject that a case is of, as BIDS has it: others may be of its other sessions."""
    return case.partition("_")[0] if case.startswith("sub-") else case.partition("_ses-")[0]


def names_of(case: str) -> set[str]:
    """What lists of names may call a case: its own name, or that of its subject or session, which mean all of them."""
    parts = accumulate(case.split("_"), "{}_{}".format) if case.startswith("sub-") else []
    return {case, subject_of(case), *parts}


def _one_of(files: Sequence[Path]) -> Path | None:
    """The one file of a list, or None where it is empty; two are refused."""
    if len(files) > 1:
        raise ValueError(
            f"{files[0]} and {files[1]} are there for the same thing: keep one of them, or name one in a datalist."
        )
    return files[0] if files else None


def _volumes(*stems: Path) -> list[Path]:
    """The files of volumes that have one of these paths without its suffix, links without content too."""
    paths = [Path(f"{stem}{suffix}") for stem in stems for suffix in VOLUME_SUFFIXES]
    return [path for path in paths if path.is_file() or path.is_symlink()]


def _entities(stem: str) -> dict[str, str]:
    """The entities of a BIDS name, such as ``{"sub": "01", "acq": "3d"}``."""
    return {key: value for key, _, value in (part.partition("-") for part in stem.split("_"))}


def _with_ending(ending: str, folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """The volumes of folders whose names end so, with what comes before it."""
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if is_volume_name(path.name)]
    ends = f"_{ending}".casefold()
    return [(path, stem[: -len(ends)]) for path in paths if (stem := file_stem(path)).casefold().endswith(ends)]


class Place(NamedTuple):
    """Where the files of one case lie.

    Attributes:
        case: Its name.
        folder: Holds its images, and masks.
        file: The first image, where it is known.
        names: What the names of its files begin with, where they are not in BIDS.
        is_bids: Whether they are.
        derivatives: Further folders of masks, by the name of the pipeline that made them.
    """

    case: str
    folder: Path
    file: Path | None = None
    names: tuple[str, ...] = ()
    is_bids: bool = False
    derivatives: Mapping[str, Path] = {}

    def expected(self, role: str) -> str:
        """The name that a file of a role should have, and its folder, for messages."""
        return f"{self.case}_{bids_ending(role) if self.is_bids else role}.nii.gz in {self.folder}"

    def mask(self, role: str) -> Path | None:
        """The file of a kind of mask, such as "seg", or "<pipeline>/desc-brain_mask" of one pipeline alone.

        Raises:
            ValueError: When several could be it.
        """
        pipeline, _, role = role.rpartition("/")
        if pipeline:
            return self.find(role, [self.derivatives[pipeline]] if pipeline in self.derivatives else [])
        others = [folder for folder in self.derivatives.values() if not any(folder.glob(f"*_{OWN_RESULT}.*"))]
        return self.find(role, [self.folder, *others])

    def find(self, role: str, folders: Sequence[Path]) -> Path | None:
        """The file of a modality, or of a kind of mask, in some folders.

        Raises:
            ValueError: When several could be it.
        """
        if self.is_bids:
            return self._find_bids(bids_ending(role), folders)
        stems = (
            sorted(folder / f"{name}_{end}" for folder in folders for name in self.names) for end in endings_of(role)
        )
        return _one_of(next(filter(None, (_volumes(*paths) for paths in stems)), []))

    def _find_bids(self, ending: str, folders: Sequence[Path]) -> Path | None:
        """Of the files without another entity than the case has, the one that shares most with it and has fewest more.

        Without contrast agent, unless the case or the ending has it.
        """
        own = _entities(self.case)
        ranked: dict[tuple[int, int], list[Path]] = {}
        for path, stem in _with_ending(ending, folders):
            found = _entities(stem)
            more = found.keys() - own.keys()
            if "ce" not in more and all(own[key] == found[key] for key in found.keys() & own.keys()):
                ranked.setdefault((len(found) - len(more), -len(more)), []).append(path)
        return _one_of(ranked[max(ranked)]) if ranked else None


def places_of(folder: Path, modality: str) -> list[Place]:
    """The cases of a folder: one, or of a subject of BIDS one for each image of the first modality."""
    found = []
    for anat in (folder / "anat", *sorted(folder.glob("ses-*/anat"))) if folder.name.startswith("sub-") else ():
        if anat.is_dir():
            below = anat.relative_to(folder.parent)
            made = {
                path.parents[len(below.parts) - 1].name: path
                for path in sorted(folder.parent.glob(f"derivatives/*/{below}"))
                if path.is_dir()
            }
            files = _with_ending(bids_ending(modality), [anat])
            plain = [(path, stem) for path, stem in files if "ce" not in _entities(stem)]
            session: list[tuple[Path | None, str]] = [(None, "_".join(below.parts[:-1]))]
            found += [Place(case, anat, file, (), True, made) for file, case in plain or session]
    return found or [Place(folder.name, folder, None, (folder.name,))]


def place_of_file(path: Path, modalities: Sequence[str]) -> Place:
    """The case of a loose file, with the masks that lie beside it under the name of its case or its own."""
    case = case_of(path, modalities)
    return Place(case, path.parent, path if len(modalities) == 1 else None, tuple(sorted({case, file_stem(path)})))
