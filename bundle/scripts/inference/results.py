"""Where the results of a case go: in a folder of its own, or as a derivative data set of BIDS."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..common.files import write_json
from ..common.ownership import PRODUCT, begin, settle
from ..common.paths import bundle_version
from ..data.layouts import case_of
from ..data.scans import FOUND_BRAIN

BIDS = "bids"
DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
BIDS_NAMES = {"anomaly_mask": "desc-anomaly_mask", "anomaly_map": "desc-anomaly_map", FOUND_BRAIN: "desc-brain_mask"}
SIDECAR = {"Type": "Lesion", "Description": "Voxels that are unlike those of healthy brains"}


class ResultFiles:
    """Names the results of cases.

    Args:
        output_dir: The folder of all results.
        layout: "folders" (``CASE/CASE_anomaly_mask.nii.gz``, with ``CASE_record.json``) or "bids"
            (``sub-01/[ses-1/]anat/sub-01[_ses-1]_desc-anomaly_mask.nii.gz``, with its JSON, which holds the record).
        modalities: Endings of the scans' names, which are no part of the case.
    """

    def __init__(self, output_dir: str | os.PathLike, layout: str = "folders", modalities: Sequence[str] = ()):
        self.output_dir, self.is_bids, self.modalities = Path(output_dir), layout == BIDS, modalities

    def path(self, case: str, name: str, suffix: str = ".nii.gz") -> Path:
        """The file of a result, such as "anomaly_mask"."""
        if not self.is_bids:
            return self.output_dir / case / f"{case}_{name}{suffix}"
        entities = bids_name(case)
        folders = [part for part in entities.split("_") if part.startswith(("sub-", "ses-"))]
        return self.output_dir.joinpath(*folders, "anat", f"{entities}_{BIDS_NAMES[name]}{suffix}")

    def record(self, case: str) -> Path:
        """The file that tells what the results of a case were made from and with."""
        return self.path(case, "anomaly_mask" if self.is_bids else "record", ".json")

    def remarks(self, inputs: Sequence[str]) -> dict[str, Any]:
        """What a record says besides, as the sidecar of a mask."""
        sources = [Path(os.path.abspath(path)).as_uri() for path in inputs]
        return {**SIDECAR, "Sources": sources} if self.is_bids else {}

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

    def describe(self) -> None:
        """Write what makes a folder a derivative data set of BIDS."""
        if not self.is_bids:
            return
        content = {
            "Name": "Brain anomalies in MRI",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PRODUCT, "Version": bundle_version()}],
        }
        begin(self.output_dir, "inference", [DESCRIPTION])
        write_json(self.output_dir / DESCRIPTION, content)
        settle(self.output_dir, "inference", [DESCRIPTION])

    def case(self, meta: Mapping[str, object], transform: object) -> dict[str, object]:
        """The case of an output of `SaveImage`, as the ``output_name_formatter`` of that transform.

        `BrainMaskd` notes it; without it (in MONAI Label) the file's name tells it.
        """
        return {"case": str(meta.get("case") or case_of(str(meta["filename_or_obj"]), self.modalities))}

    def of(self, name: str) -> SimpleNamespace:
        """The ``folder_layout`` of a `SaveImage` that writes one kind of result."""
        return SimpleNamespace(filename=partial(self.path, name=name))


def bids_name(case: str) -> str:
    """A case's name in BIDS: of a case of BIDS its own, such as ``sub-01_acq-3d``, else ``sub-`` and what may stay."""
    is_bids = re.fullmatch(r"sub-[a-zA-Z0-9]+(_(?!desc-)[a-z]+-[a-zA-Z0-9+]+)*", case) is not None
    return case if is_bids else f"sub-{re.sub('[^a-zA-Z0-9]', '', case)}"
