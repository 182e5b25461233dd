"""Which file of a folder is which, in one place: the conventions that scans come in.

* A folder for each scan: ``NAME/NAME_flair.nii.gz``, with ``NAME_seg`` and the like beside it, as BraTS has it.
* Loose files: ``NAME_flair.nii.gz`` and ``NAME_seg.nii.gz`` beside each other, or, of one modality, any file.
* BIDS: ``sub-01/[ses-1/]anat/sub-01[_ses-1]_FLAIR.nii.gz``; masks lie there or in the same folders below
  ``derivatives/<pipeline>``. The case is ``sub-01`` or ``sub-01_ses-1``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .nifti import file_stem, find_volume, is_volume_name, one_of

BIDS_ENDINGS = {
    "flair": "FLAIR",
    "t1": "T1w",
    "t2": "T2w",
    "seg": "label-lesion_mask",
    "mask": "desc-brain_mask",
    "brain": "desc-brain_mask",
}
MODALITIES = ("flair", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2star", "pd", "pdw", "dwi", "adc", "swi")


def endings_of(role: str) -> list[str]:
    """How the names of files of a modality, or of a kind of mask, may end, without suffix; the likeliest first."""
    return [*dict.fromkeys([role, role.lower(), role.upper(), BIDS_ENDINGS.get(role.lower(), role)])]


def ending_of(stem: str, roles: Sequence[str]) -> str | None:
    """The ending, of those that the roles may have, that a file's name without suffix has."""
    return next((end for role in roles for end in endings_of(role) if stem.endswith(f"_{end}")), None)


def case_of(path: str | os.PathLike, modalities: Sequence[str]) -> str:
    """The case that a file belongs to: its name without suffix and modality."""
    name = file_stem(path)
    return name.removesuffix(f"_{ending_of(name, modalities)}") or name


def person_of(case: str) -> str:
    """The person that a case is of: a case of BIDS may be one of several sessions."""
    return case.partition("_ses-")[0]


def names_of(case: str) -> set[str]:
    """What lists of names may call a case: its own name, or that of its person, which means all the sessions."""
    return {case, person_of(case)}


class Place(NamedTuple):
    """Where the files of one case lie.

    Attributes:
        case: Its name.
        folder: Holds its images, and masks.
        names: What the names of its files begin with.
        file: The image, where it is a loose file that need not have an ending.
        derivatives: Further folders of masks, by the name of the pipeline that made them.
    """

    case: str
    folder: Path
    names: tuple[str, ...]
    file: Path | None = None
    derivatives: Mapping[str, Path] = {}

    @property
    def is_bids(self) -> bool:
        return self.folder.name == "anat" and self.case.startswith("sub-")

    def expected(self, role: str) -> str:
        """The name that a file of a role should have, and its folder, for messages."""
        ending = BIDS_ENDINGS.get(role.lower(), role) if self.is_bids else role
        return f"{self.case}_{ending}.nii.gz in {self.folder}"

    def image(self, modality: str) -> Path | None:
        """The file of a modality; of a BIDS folder, the plain one or else the only one without contrast agent.

        Raises:
            ValueError: When several could be it.
        """
        return self._find(modality, [self.folder])

    def mask(self, role: str) -> Path | None:
        """The file of a kind of mask, such as "seg", or "<pipeline>/desc-brain_mask" of one pipeline alone.

        Raises:
            ValueError: When several could be it.
        """
        pipeline, _, role = role.rpartition("/")
        folders = [self.folder, *self.derivatives.values()]
        folders = [self.derivatives[pipeline]] if pipeline in self.derivatives else [] if pipeline else folders
        return self._find(role, folders)

    def _find(self, role: str, folders: Sequence[Path]) -> Path | None:
        for ending in endings_of(role):
            stems = sorted(folder / f"{name}_{ending}" for folder in folders for name in self.names)
            if (path := find_volume(*stems)) is not None:
                return path
        return one_of(self._with_entities(BIDS_ENDINGS.get(role.lower(), role), folders)) if self.is_bids else None

    def _with_entities(self, ending: str, folders: Sequence[Path]) -> list[Path]:
        """Files of a BIDS case that have further entities, such as ``acq-3d``, between the name and the ending."""
        contrast = "ce-" in ending
        return [
            path
            for path in (path for folder in folders for path in sorted(folder.iterdir()))
            if is_volume_name(path.name)
            and file_stem(path).startswith(f"{self.case}_")
            and file_stem(path).casefold().endswith(f"_{ending}".casefold())
            and (contrast or "_ce-" not in path.name)
        ]


def places_of(folder: Path) -> list[Place]:
    """The cases of a folder: one, or of a subject of BIDS one for each session."""
    found = []
    if folder.name.startswith("sub-"):
        for anat in (folder / "anat", *sorted(folder.glob("ses-*/anat"))):
            if anat.is_dir():
                below = anat.relative_to(folder.parent)
                case = "_".join(below.parts[:-1])
                made = {path.parents[len(below.parts) - 1].name: path for path in _derived(folder.parent, below)}
                found.append(Place(case, anat, (case,), derivatives=made))
    return found or [Place(folder.name, folder, (folder.name,))]


def _derived(root: Path, below: Path) -> list[Path]:
    return [path for path in sorted(root.glob(f"derivatives/*/{below}")) if path.is_dir()]


def place_of_file(path: Path, modalities: Sequence[str]) -> Place:
    """The case of a loose file, with the masks that lie beside it under the name of its case or its own."""
    case = case_of(path, modalities)
    file = path if len(modalities) == 1 else None
    return Place(case, path.parent, tuple(sorted({case, file_stem(path)})), file)


def place_named(root: Path, name: str, modalities: Sequence[str]) -> list[Place]:
    """The cases of a folder of scans that go by a name: that of a folder, of a session, or of loose files."""
    if (root / name).is_dir():
        return places_of(root / name)
    session = [place for place in places_of(root / person_of(name)) if place.is_bids and place.case == name]
    if session:
        return session
    stems = [root / f"{name}_{ending}" for ending in endings_of(modalities[0])]
    found = next((path for stem in stems if (path := find_volume(stem))), None)
    found = found or (find_volume(root / name) if len(modalities) == 1 else None)
    return [place_of_file(found, modalities)] if found else []
