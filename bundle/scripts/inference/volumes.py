"""Segmenting volumes: which are given, which are done, and writing results that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine, Events
from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter
from monai.engines import SupervisedEvaluator

from ..common.files import atomic, check_writable, not_empty, write_json
from ..common.share import share
from ..data.nifti import NIFTI_SUFFIXES
from ..data.scans import Subject, check_case_name, check_subjects, find_subjects


def find_inputs(
    dataset_dir: str | os.PathLike,
    modalities: Sequence[str],
    image: str | Sequence[str] | None = None,
    brain_mask: str | None = None,
    allow_outside: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> list[Subject]:
    """List the volumes that this process segments and check their headers.

    Args:
        dataset_dir: Folder of scans, see `find_subjects`.
        modalities: File name endings, in the order of the channels.
        image: One volume instead of the folder: a file, or one file for each modality.
        brain_mask: File name ending of brain masks; with ``image`` the mask's file. None: voxels above 0 are brain.
        allow_outside: As in `find_subjects`.
        rank: This process.
        world_size: Number of processes; each gets its share of the volumes.

    Returns:
        The scans, as `find_subjects` gives them.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When a file is no volume, or ``image`` has another number of files than there are modalities.
    """
    if image is None:
        subjects = find_subjects(
            dataset_dir, modalities, label=None, brain_mask=brain_mask, allow_outside=allow_outside
        )
    else:
        files = [image] if isinstance(image, str) else list(image)
        if len(files) != len(modalities):
            raise ValueError(
                f"`image` has {len(files)} files, but the model takes {len(modalities)} modalities "
                f"({', '.join(modalities)}): give one file for each."
            )
        check_case_name(case_of(files[0], modalities), "`image`")
        subject: Subject = {"case": case_of(files[0], modalities), "image": [str(Path(file)) for file in files]}
        subjects = [subject | ({"brain_mask": brain_mask} if brain_mask else {})]
    mine = share(subjects, rank, world_size)
    if world_size > 1:
        print(f"Process {rank + 1} of {world_size}: {len(mine)} of {len(subjects)} volumes.")
    subjects = mine
    check_subjects(subjects)
    return subjects


def case_of(path: str | os.PathLike, modalities: Sequence[str]) -> str:
    """The case that a file belongs to: its name without suffix and modality."""
    name = Path(path).name
    name = next((name[: -len(suffix)] for suffix in NIFTI_SUFFIXES if name.endswith(suffix)), Path(name).stem)
    ending = next((f"_{modality}" for modality in modalities if name.endswith(f"_{modality}")), "")
    return name.removesuffix(ending) or name


def output_name(meta: Mapping[str, object], transform: object, modalities: Sequence[str]) -> dict[str, object]:
    """Names an output of `SaveImage` after its case, as the ``output_name_formatter`` of that transform.

    `BrainMaskd` notes the case; without one (in MONAI Label) the file's name tells it.
    """
    return {"subject": str(meta.get("case") or case_of(str(meta["filename_or_obj"]), modalities)), "idx": None}


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer, but a reader never meets a half-written file, and a volume of one slice stays a volume."""

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int = 0, **kwargs: object) -> None:
        """Take a volume (1, H, W, D); its last axes stay, of whatever length."""
        super().set_data_array(data_array, channel_dim, **{**kwargs, "squeeze_end_dims": False})
        self.data_obj = self.data_obj[..., 0]

    def write(self, filename: str | os.PathLike, verbose: bool = False, **kwargs: object) -> None:
        """Write to a temporary file beside ``filename`` and put it in place."""
        with atomic(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)


class Volumes:
    """The volumes of one run, without those that an earlier run with the same settings finished.

    Args:
        subjects: What `find_inputs` found.
        output_dir: Where each case gets a folder.
        model_file: The weights; another file makes all results anew.
        settings: All other options that change a result.

    Attributes:
        pending: The volumes that are left to do.
    """

    def __init__(
        self, subjects: Sequence[Subject], output_dir: str, model_file: str, settings: Mapping[str, object]
    ) -> None:
        self.output_dir = check_writable(output_dir)
        weights = Path(model_file)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        self.settings = {"model_sha256": digest, **settings}
        self.number = len(subjects)
        self.pending = [
            {**subject, "record": record}
            for subject in subjects
            if self._finished(subject["case"]) != (record := self._record(subject))
        ]

    def _record(self, subject: Subject) -> dict[str, object]:
        files = [*subject["image"], *([subject["brain_mask"]] if "brain_mask" in subject else [])]
        inputs = [[os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in files]
        return json.loads(json.dumps({"inputs": inputs, **self.settings}))

    def _record_file(self, case: str) -> Path:
        return self.output_dir / case / f"{case}_record.json"

    def _finished(self, case: str) -> object:
        results = [self.output_dir / case / f"{case}_{name}.nii.gz" for name in ("mask", "anomaly_map")]
        try:
            record = json.loads(self._record_file(case).read_text())
        except (OSError, ValueError):
            return None
        return record if all(not_empty(result) for result in results) else None

    def attach(self, engine: Engine) -> None:
        """Note every volume that the evaluator has finished."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _finish(self, engine: Engine) -> None:
        for item in engine.state.batch:
            write_json(self._record_file(item["case"]), item["record"])

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Segment the pending volumes and say where the results are."""
        if len(self.pending) < self.number:
            print(f"{self.number - len(self.pending)} of {self.number} volumes are finished already.")
        if self.pending:
            evaluator.run()
        print(f"Masks and anomaly maps: {self.output_dir.resolve()}/<case>/<case>_mask.nii.gz, _anomaly_map.nii.gz")
