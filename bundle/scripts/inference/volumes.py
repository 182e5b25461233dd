"""Segmenting volumes: which are given, which are done, and writing results that are whole or not there."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import SupervisedEvaluator

from ..common.batch import Cases, raise_failed
from ..common.files import check_writable, not_empty, watch, write_json
from ..common.ownership import (
    PRODUCT,
    check_claim,
    check_no_input,
    check_no_link,
    check_unchanged,
    file_digest,
    is_same_file,
    lock_folder,
    read_record,
    steps_below,
    unlock_folder,
)
from ..common.share import first_checks, join_group, share
from ..data.quality import check_marked
from ..data.scans import FOUND_BRAIN, RESULTS, Scan
from ..method.refinement import Refinement
from .inferer import is_for_volumes
from .results import DESCRIPTION, ResultFiles
from .tables import LESIONS, STEP, VOLUMES, is_measured, measure_volume, write_tables
from .writer import write_brain_mask

logger = logging.getLogger(__name__)

MODEL = "model_sha256"
OUTCOME = ("results", "warnings", "numbers")  # what a record tells at the end only


class Volumes:
    """The volumes of one run, without those that an earlier run with the same settings finished.

    A case's record, ``CASE_record.json``, is there before its results are, so that a later run knows them as this
    product's, and tells at the end what they were made from and with, and their numbers.

    Every process that ends writes the tables (see `tables`), of the records of all volumes that are finished by then,
    so that those of the process that ends last tell of all, and none has to wait.

    Args:
        subjects: What `find_scans` found.
        output_dir: Where each case gets a folder.
        model_file: The weights; another file makes all results anew.
        settings: All other options that change a result.
        rank: This process.
        world_size: Number of processes; each segments its share of the volumes.
        save_brain_mask: The brain mask of each volume is a result too.
        layout: Of the results, see `ResultFiles`.

    Attributes:
        pending: The volumes that are left to do.

    Raises:
        ValueError: When a result would replace an input, or a file that this product did not write.
    """

    def __init__(
        self,
        subjects: Sequence[Scan],
        output_dir: str,
        model_file: str,
        settings: Mapping[str, object],
        rank: int = 0,
        world_size: int = 1,
        save_brain_mask: bool = False,
        layout: str = "folders",
    ) -> None:
        self.names = (*RESULTS, FOUND_BRAIN) if save_brain_mask else RESULTS
        self.output_dir = Path(output_dir)
        self.files = ResultFiles(output_dir, layout)
        self.files.check_apart(subject["case"] for subject in subjects)
        weights = Path(model_file)
        self.settings = {MODEL: file_digest(weights) if weights.is_file() else None, **settings}
        self.records = {subject["case"]: self._record(subject) for subject in Cases().sound(subjects)}
        mine = share(subjects, rank, world_size)
        if world_size > 1:
            print(f"Process {rank + 1} of {world_size}: {len(mine)} of {len(subjects)} volumes.")
        self.number = len(mine)
        self.cases = Cases()
        sound = self.cases.sound(mine)
        self.pending = [subject for subject in sound if not self._finished(subject["case"])]
        self.finished = len(sound) - len(self.pending)
        self.changed = sorted({name for subject in self.pending for name in self._changed_settings(subject["case"])})
        self._check_places(sound)
        first_checks(self._check_folder)

    def _check_folder(self) -> None:
        check_claim(self.output_dir, STEP, (VOLUMES, LESIONS, *([DESCRIPTION] if self.files.is_bids else [])))
        lock_folder(check_writable(self.output_dir))

    def _record(self, subject: Scan) -> dict[str, Any]:
        inputs = [[os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in _files(subject)]
        remarks = self.files.remarks(_files(subject))
        return json.loads(json.dumps({"product": PRODUCT, "inputs": inputs, **remarks, **self.settings}))

    def _record_file(self, case: str) -> Path:
        return self.files.record(case)

    def _results(self, case: str) -> list[Path]:
        return [self.files.path(case, name) for name in self.names]

    def _finished(self, case: str) -> dict[str, Any]:
        """The record of a finished volume; empty while it is not."""
        record = read_record(self._record_file(case))
        same = {key: value for key, value in record.items() if key not in OUTCOME} == self.records[case]
        whole = same and record.keys() >= {*OUTCOME} and is_measured(case, record)
        return record if whole and all(map(not_empty, self._results(case))) else {}

    def _changed_settings(self, case: str) -> list[str]:
        """The settings in which the record of a volume that is finished differs from those of this run."""
        record = read_record(self._record_file(case))
        if not record.keys() >= {*OUTCOME}:
            return []
        return [
            f"{name} {json.dumps(record.get(name))} -> {json.dumps(value)}" if name != MODEL else "other weights"
            for name, value in json.loads(json.dumps(self.settings)).items()
            if record.get(name) != value
        ]

    def _check_places(self, subjects: Sequence[Scan]) -> None:
        inputs = [path for subject in subjects for path in _files(subject)]
        for subject in self.pending:
            case, path = subject["case"], self._record_file(subject["case"])
            check_no_input([path, *self._results(case)], inputs)
            for place in (path, *self._results(case)):
                check_no_link(steps_below(self.output_dir, place))
            record = read_record(path)
            if os.path.lexists(path) and record.get("product") != PRODUCT:
                raise ValueError(
                    f"{path} is in the way, which this product did not write: move it, or set `output_dir`."
                )
            self._check_other_scan(subject, record)
            digests, results = record.get("results"), self._results(case)
            digests = digests if isinstance(digests, dict) else {}
            watch([path, *results], unsure=[result for result in results if digests.get(result.name) is None])
            for result in [path for path in self._results(case) if os.path.lexists(path)]:
                if not record:
                    raise ValueError(
                        f"{result} is in the way, which this product did not write: move it, or set another "
                        "`output_dir`."
                    )
                check_unchanged(result, digests.get(result.name), STEP)

    def _check_other_scan(self, subject: Scan, record: Mapping[str, Any]) -> None:
        """Refuse to replace the results of a scan by those of another one of the same name."""
        before = record.get("inputs")
        first = before[0][0] if isinstance(before, list) and before else None
        if first is not None and os.path.exists(str(first)) and not is_same_file(str(first), subject["image"][0]):
            raise ValueError(
                f"{self._record_file(subject['case']).parent} holds the result of {first}, which is another scan than "
                f"{subject['image'][0]}: set another `output_dir`, or rename one of the scans."
            )

    def attach(self, engine: Engine) -> None:
        """Note every volume that the evaluator begins and finishes."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _start_clock(self) -> None:
        self.started = time.monotonic()

    def _begin(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        for case in batch["case"]:
            write_json(self._record_file(case), self.records[case])

    def _finish(self, engine: SupervisedEvaluator) -> None:
        state: Any = engine.state
        network: Any = engine.network
        for item, output in zip(state.batch, state.output, strict=True):
            case = item["case"]
            if FOUND_BRAIN in self.names:
                write_brain_mask(self._results(case)[-1], item["brain_mask"], item["image"].meta["filename_or_obj"])
            numbers = _numbers(output["pred_mask"], output["pred_anomaly_map"], item["brain_mask"], network)
            if sentence := check_marked(numbers["marked_ml"], numbers["brain_ml"]):
                logger.warning(f"{case} {sentence}")
            outcome = {
                "numbers": numbers | {"seconds": round(time.monotonic() - self.started, 2)},
                "results": {result.name: file_digest(result) for result in self._results(case)},
                "warnings": [record.getMessage() for record in self.cases.records],
            }
            write_json(self._record_file(case), self.records[case] | outcome)

    def _forget_failed(self) -> None:
        """Remove the records of volumes that failed and have no result."""
        for case in self.cases.failed:
            if case in self.records and not any(map(os.path.lexists, self._results(case))):
                self._record_file(case).unlink(missing_ok=True)
                with suppress(OSError):  # where something else is left
                    for folder in self._record_file(case).relative_to(self.output_dir).parents[:-1]:
                        (self.output_dir / folder).rmdir()

    def _write_tables(self) -> None:
        """Write the tables until no record changes meanwhile: two processes may end at once."""
        written = None
        while (finished := {case: record for case in self.records if (record := self._finished(case))}) != written:
            write_tables(self.output_dir, finished)
            self.files.describe()
            written = finished

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Segment the pending volumes, write the tables and say where the results are.

        Raises:
            RuntimeError: When a volume failed; the others are done then.
        """
        if self.finished:
            print(f"{self.finished} of {self.number} volumes are finished already.")
        if self.changed:
            print(f"Finished volumes are done anew, with {', '.join(self.changed)}.")
        if self.pending:
            self.cases.run(evaluator, show=int(os.environ.get("RANK", "0")) == 0)
            self._forget_failed()
        self._write_tables()
        if len(self.cases.failed) < self.number:
            first, *others = (
                self.files.path("sub-CASE" if self.files.is_bids else "<case>", name) for name in self.names
            )
            print(f"Masks and anomaly maps: {', '.join([str(first.resolve()), *(path.name for path in others)])}")
            print(f"Tables: {self.output_dir.resolve()}/{VOLUMES}, {LESIONS}")
        wait_for_others()
        unlock_folder(self.output_dir)
        raise_failed(self.cases.failed, self.number)


def _numbers(mask: MetaTensor, anomaly_map: MetaTensor, brain_mask: MetaTensor, network: Refinement) -> dict[str, Any]:
    """What `measure_volume` finds in a volume's results (1, H, W, D) and its brain mask."""
    arrays = [image.as_tensor()[0].cpu().numpy() for image in (mask, anomaly_map, brain_mask)]
    affines = [np.asarray(image.affine.cpu(), dtype=np.float64) for image in (mask, brain_mask)]
    whole = is_for_volumes(network, brain_mask.as_tensor()[0] > 0, affine_to_spacing(brain_mask.affine))
    planes = [math.inf, -math.inf] if whole else network.planes.tolist()  # whole volumes are known at all levels
    return measure_volume(arrays[0] > 0, arrays[1], affines[0], arrays[2] > 0, affines[1], planes)


def _files(subject: Scan) -> list[str]:
    return [*subject["image"], *([subject["brain_mask"]] if "brain_mask" in subject else [])]


def wait_for_others() -> None:
    """Wait under torchrun until every process is done: it ends all of them when one fails."""
    if join_group():
        dist.barrier()
