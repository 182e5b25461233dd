"""Where the results of a scan go: in a folder of its own, or as a derivative data set of BIDS."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ..common.outputs import write_json, write_text
from ..common.paths import PRODUCT, bundle_version
from ..data.layouts import case_of
from ..data.scans import FOUND_BRAIN

BIDS = "bids"
DESCRIPTION, IGNORED = "dataset_description.json", ".bidsignore"
BIDS_VERSION = "1.10.0"
BIDS_NAMES = {"anomaly_mask": "desc-anomaly_mask", "anomaly_map": "desc-anomaly_map", FOUND_BRAIN: "desc-brain_mask"}
SIDECAR = {"Type": "Lesion", "Description": "Voxels that are unlike those of healthy brains"}
RECORDS = {"folders": ("*/*_record.json",), BIDS: ("sub-*/anat/*_record.json", "sub-*/ses-*/anat/*_record.json")}


class ResultFiles:
    """Names the results of scans.

    Args:
        output_dir: The folder of all results.
        layout: "folders" (``CASE/CASE_anomaly_mask.nii.gz``) or "bids"
            (``sub-01/[ses-1/]anat/sub-01[_ses-1]_desc-anomaly_mask.nii.gz``, with its JSON); in both there is a record
            of what the results were made from and with, whose name ends in ``_record.json``.
        modalities: Endings of the scans' names, which are no part of the case.
    """

    def __init__(self, output_dir: str | os.PathLike, layout: str = "folders", modalities: Sequence[str] = ()):
        self.output_dir, self.layout, self.modalities = Path(output_dir), layout, modalities
        self.is_bids = layout == BIDS

    def name(self, case: str) -> str:
        """What the results of a case are called, and its rows in the tables."""
        return bids_name(case) if self.is_bids else case

    def folder(self, case: str) -> Path:
        """Where the results of a case are."""
        if not self.is_bids:
            return self.output_dir / case
        parts = [part for part in bids_name(case).split("_") if part.startswith(("sub-", "ses-"))]
        return self.output_dir.joinpath(*parts, "anat")

    def path(self, case: str, name: str, suffix: str = ".nii.gz") -> Path:
        """The file of a result, such as "anomaly_mask"."""
        return self.folder(case) / f"{self.name(case)}_{BIDS_NAMES[name] if self.is_bids else name}{suffix}"

    def record(self, case: str) -> Path:
        """The file that tells what the results of a case were made from and with."""
        return self.folder(case) / f"{self.name(case)}_record.json"

    def records(self) -> list[Path]:
        """The records of all cases, be they of this run or of others."""
        return sorted(path for pattern in RECORDS[self.layout] for path in self.output_dir.glob(pattern))

    def check_apart(self, cases: Iterable[str]) -> None:
        """Refuse cases whose results would be the same files.

        Raises:
            ValueError: When two of them have one name in BIDS, which takes letters and digits alone.
        """
        owner: dict[str, str] = {}
        for case in cases if self.is_bids else ():
            other = owner.setdefault(bids_name(case).casefold(), case)
            if other != case:
                raise ValueError(
                    f"{other} and {case} would both be {bids_name(case)} in BIDS, whose names have letters and digits "
                    "alone: rename one, or set `layout` to folders."
                )

    def describe(self, case: str, inputs: Sequence[str]) -> None:
        """Write the sidecar of a mask in BIDS, which names the scans by their places in their own data set."""
        if self.is_bids:
            write_json(self.path(case, "anomaly_mask", ".json"), {**SIDECAR, "Sources": [*map(bids_source, inputs)]})

    def describe_all(self, inputs: Sequence[str]) -> None:
        """Write what makes the folder a derivative data set of BIDS.

        Args:
            inputs: Scans, of which the first tells where the data set lies that they are of.
        """
        if not self.is_bids:
            return
        roots = [root for root in map(bids_root, inputs) if root is not None]
        links = {"raw": Path(os.path.relpath(roots[0], self.output_dir)).as_posix()} if roots else {}
        content = {
            "Name": "Brain anomalies in MRI",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PRODUCT, "Version": bundle_version()}],
            "DatasetLinks": links,
        }
        write_json(self.output_dir / DESCRIPTION, content)
        write_text(self.output_dir / IGNORED, "*_record.json\n*_view.html\n*.csv\n")

    def case(self, meta: Mapping[str, object], transform: object) -> dict[str, object]:
        """The case of an output of `SaveImage`, as the ``output_name_formatter`` of that transform.

        `BrainMaskd` notes it; without it (in MONAI Label) the file's name tells it.
        """
        return {"case": str(meta.get("case") or case_of(str(meta["filename_or_obj"]), self.modalities))}

    def of(self, name: str) -> SimpleNamespace:
        """The ``folder_layout`` of a `SaveImage` that writes one kind of result."""
        return SimpleNamespace(filename=partial(self.path, name=name))


def bids_name(case: str) -> str:
    """A case's name in BIDS, such as ``sub-01_ses-1_acq-3d``: of BIDS its own, else ``sub-`` and what may stay.

    Its ``desc`` goes, since that of a result takes the place.
    """
    if re.fullmatch(r"sub-[a-zA-Z0-9]+(_[a-z]+-[a-zA-Z0-9+]+)*", case):
        return re.sub("_desc-[^_]+", "", case)
    return f"sub-{re.sub('[^a-zA-Z0-9]', '', case)}"


def bids_root(path: str) -> Path | None:
    """The folder of the data set of BIDS that a scan is of: that with the folder of its subject; None where none is."""
    parents = [parent for parent in Path(path).absolute().parents if parent.name.startswith("sub-")]
    return parents[-1].parent if parents else None


def bids_source(path: str) -> str:
    """A scan as the URI that BIDS has for it, or its bare name where it is of no data set of BIDS."""
    root = bids_root(path)
    return Path(path).name if root is None else f"bids:raw:{Path(path).absolute().relative_to(root).as_posix()}"
