"""Segmenting scans: which are given, which are done, and writing results that are whole or not there."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from ..common.case_runner import CaseRunner, raise_failed
from ..common.outputs import check_outputs, check_writable, file_digest, locked, read_json, write_json
from ..common.paths import PRODUCT
from ..data.quality import check_marked
from ..data.scans import FOUND_BRAIN, RESULTS, Scan
from .results import DESCRIPTION, IGNORED, ResultFiles
from .tables import LESIONS, VOLUMES, measure_volume, rows_of, write_tables
from .writer import write_brain_mask

logger = logging.getLogger(__name__)

MODEL = "model_sha256"
OUTCOME = ("results", "warnings", "numbers")  # what a record tells at the end only


class Volumes:
    """The scans of one run, without those that an earlier run with the same settings finished.

    The record of a scan tells what its results were made from and with, their numbers and what is to be said of them.
    While an earlier result is replaced it tells neither, so that a run may be killed at any moment.

    Several runs, on any machines, may write different scans into one folder. Each of them writes the tables at its end,
    of all scans that are finished by then.

    Args:
        subjects: What `find_scans` found.
        output_dir: Where the results go, see `ResultFiles`.
        model_file: The weights; another file makes all results anew.
        settings: All other options that change a result.
        rank: This process.
        world_size: Number of processes; each segments its part of the scans.
        save_brain_mask: The brain mask of each scan is a result too.
        layout: Of the results, see `ResultFiles`.

    Attributes:
        pending: The scans that are left to do.

    Raises:
        ValueError: When ``rank`` is none of the processes, or a table or the data set's description would replace what
            this product did not write.
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
        self.settings = {MODEL: file_digest(model_file) if os.path.isfile(model_file) else None, **settings}
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be in [0, {world_size}), got {rank}: number the processes from 0.")
        mine = subjects[rank::world_size]
        if world_size > 1:
            print(f"Process {rank + 1} of {world_size}: {len(mine)} of {len(subjects)} scans.")
        tables = (VOLUMES, LESIONS, *((DESCRIPTION, IGNORED) if self.files.is_bids else ()))
        check_outputs(check_writable(self.output_dir) / name for name in tables)
        self.number, self.rank, self.runner, self.lock = len(mine), rank, CaseRunner(), ExitStack()
        usable = self.runner.usable(mine)
        self.records = {subject["case"]: self._record(subject) for subject in usable}
        left = [subject for subject in usable if not self._is_finished(subject["case"])]
        self.finished = len(usable) - len(left)
        self.pending = [subject for subject in left if self._may_be_written(subject)]

    def _record(self, subject: Scan) -> dict[str, Any]:
        files = [*subject["image"], *([subject["brain_mask"]] if "brain_mask" in subject else [])]
        inputs = [[os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in files]
        record = {"product": PRODUCT, "case": self.files.name(subject["case"]), "inputs": inputs, **self.settings}
        return json.loads(json.dumps(record))

    def _results(self, case: str) -> dict[str, Path]:
        return {name: self.files.path(case, name) for name in self.names}

    def _is_finished(self, case: str) -> bool:
        record = read_json(self.files.record(case))
        same = {key: value for key, value in record.items() if key not in OUTCOME} == self.records[case]
        whole = all(path.is_file() and path.stat().st_size for path in self._results(case).values())
        return same and whole and rows_of(record) is not None

    def _may_be_written(self, subject: Scan) -> bool:
        """Whether nothing is in the way of a scan's results; what is, is noted as its failure."""
        case = subject["case"]
        path = self.files.record(case)
        try:
            before = read_json(path).get("inputs") or [[""]]
            first, image = str(before[0][0]), subject["image"][0]
            if os.path.exists(first) and not os.path.samefile(first, image):
                raise ValueError(
                    f"{path.parent} holds the result of {first}, which is another scan than {image}: set another "
                    "`output_dir`, or rename one of the scans."
                )
            check_outputs([path, *self._results(case).values()])
        except ValueError as error:
            self.runner.failed[case] = str(error)
        return case not in self.runner.failed

    def attach(self, engine: Engine) -> None:
        """Note every scan that the evaluator begins and finishes."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _begin(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        (case,) = batch["case"]
        self.started = time.monotonic()
        self.lock.close()
        self.lock.enter_context(locked(self.output_dir / self.files.record(case).name))
        if self.files.record(case).exists():
            write_json(self.files.record(case), self.records[case])

    def _finish(self, engine: SupervisedEvaluator) -> None:
        state: Any = engine.state
        (item,), (output,) = state.batch, state.output
        case = item["case"]
        results = self._results(case)
        if FOUND_BRAIN in results:
            write_brain_mask(results[FOUND_BRAIN], item["brain_mask"], item["image"].meta["filename_or_obj"])
        self.files.describe(case, [path for path, *_ in self.records[case]["inputs"]])
        numbers = measure_volume(output["pred_mask"], output["pred_anomaly_map"], item["brain_mask"])
        if sentence := check_marked(numbers["marked_ml"], numbers["brain_ml"]):
            logger.warning(f"{case} {sentence}")
        outcome = {
            "numbers": numbers | {"seconds": round(time.monotonic() - self.started, 2)},
            "results": {name: path.name for name, path in results.items()},
            "warnings": self.runner.warnings_of(case),
        }
        write_json(self.files.record(case), self.records[case] | outcome)

    def _write_tables(self) -> None:
        with locked(self.output_dir / VOLUMES, wait=True):
            write_tables(self.output_dir, map(read_json, self.files.records()))
            inputs = [path for record in self.records.values() for path, *_ in record["inputs"]]
            self.files.describe_all(inputs)

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Segment the pending scans, write the tables and say where the results are.

        Raises:
            RuntimeError: When a scan failed; the others are done then.
        """
        if self.finished:
            print(f"{self.finished} of {self.number} scans are finished already.")
        if self.pending:
            with self.lock:
                self.runner.run(evaluator, show=self.rank == 0)
        self._write_tables()
        if len(self.runner.failed) < self.number:
            first, *others = self._results("sub-CASE" if self.files.is_bids else "<case>").values()
            print(f"Masks and anomaly maps: {', '.join([str(first.resolve()), *(path.name for path in others)])}")
            print(f"Tables: {self.output_dir.resolve()}/{VOLUMES}, {LESIONS}")
        _wait_for_others()
        raise_failed(self.runner.failed, self.number)


def _wait_for_others() -> None:
    """Wait under torchrun until every process is here, because it ends all of them when one fails."""
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=1))
        dist.barrier()
