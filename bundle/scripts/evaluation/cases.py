"""Scoring the method and the plain baselines on labeled cases, and writing what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator
from torch import Tensor

from ..common.case_runner import CaseRunner, raise_failed
from ..common.outputs import check_outputs, check_writable, locked
from ..data.dataset import SliceDataset
from .baselines import Baseline
from .metrics import counts_above, lesion_scores, overlap_from_counts
from .pictures import draw_case
from .samples import Sample, case_row, warn_of_label
from .summaries import (
    METHOD,
    TABLES,
    CaseScores,
    print_summary,
    read_subsets,
    summarize,
    thresholds_of,
    write_tables,
)


@dataclass
class Evaluation:
    """Collects scores case by case, in any number of processes, and turns them into tables and pictures.

    Healthy slices give the false-positive fraction, and the baselines their threshold: the one that marks the same
    fraction of the healthy brain as the method does. Labeled cases give everything else. Only counts are kept, about
    0.15 MB a case however large the volumes are.

    Args:
        output_dir: Folder for tables and pictures.
        title: Name of the method in them.
        modalities: Names of the M modalities.
        baselines: Name to what scores a `Sample`, (D, 1, H, W), 0 outside the brain; its ``threshold`` is None where
            healthy slices shall set it.
        outputs: What the channels of a prediction are, as the inferer names them; ``reconstruction`` may be missing.
        ssim_data_range: Width of the intensities for SSIM; the brain is scaled to [-3, 3].
        healthy_from_cases: Whether the lesion-free slices of the labeled cases are the healthy ones.
        first_slice: Number of the first slice of a volume, for the captions of the pictures.
        pictures: Whether to draw each case.
        subsets: Name of each subset whose Dice is wanted too to a file with a case name a line.

    Raises:
        OSError: When ``output_dir`` cannot be written.
        ValueError: When a file of ``subsets`` is missing or empty, or a file is in the way that no evaluation wrote.
    """

    output_dir: str
    title: str
    modalities: Sequence[str]
    baselines: Mapping[str, Baseline]
    outputs: Sequence[str] = ("mask", "anomaly_map", "reconstruction", "iterations", "threshold")
    ssim_data_range: float = 6.0
    healthy_from_cases: bool = False
    first_slice: int = 0
    pictures: bool = True
    subsets: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = read_subsets(self.subsets)
        self.folder = Path(self.output_dir)
        if idist.get_rank() == 0:
            check_writable(self.folder)
            check_outputs(self.folder / name for name in TABLES)
        self.failures = CaseRunner()
        self.scores = {f"baseline_{name}_": baseline for name, baseline in self.baselines.items()}
        self.cases: list[CaseScores] = []

    def _score(self, sample: Sample, healthy: Tensor, row: dict[str, Any] | None) -> CaseScores:
        """Count what the method and the baselines mark in a case, and in its healthy slices, bool (D,)."""
        inside = sample.brain_mask
        is_healthy = inside & healthy[:, None, None, None]
        case = CaseScores(row, int(is_healthy.flatten(1).any(dim=1).sum()), int(is_healthy.sum()))
        groups = [mask[inside].numpy() for mask in (sample.label, inside, is_healthy)]
        scores, masks = {METHOD: sample.anomaly_map}, {METHOD: sample.pred_mask & inside}
        case.thresholds[METHOD] = sample.threshold
        for prefix, baseline in self.scores.items():
            scores[prefix] = baseline(sample)
            if baseline.threshold is not None:
                case.thresholds[prefix] = baseline.threshold
                masks[prefix] = (scores[prefix] > baseline.threshold) & inside
        for prefix, values in scores.items():
            counts = counts_above(values[inside].numpy(), thresholds_of(prefix), *groups)
            case.counts[prefix] = counts.astype(np.int32)
        for prefix, mask in masks.items():
            marked = mask[inside].numpy()
            case.marked[prefix] = np.array([(marked & group).sum() for group in groups])
            if row is not None:
                found = lesion_scores(mask[:, 0].numpy(), sample.label[:, 0].numpy(), sample.voxel_ml)
                row |= {prefix + name: value for name, value in found.items()}
        return case

    def add_healthy(self, sample: Sample) -> None:
        """Count what is marked in the brain of healthy slices."""
        self.cases.append(self._score(sample, torch.ones(len(sample.image), dtype=torch.bool), None))

    def add_case(self, sample: Sample) -> None:
        """Score a labeled case and draw its picture."""
        warn_of_label(sample)
        row = case_row(sample, self.ssim_data_range)
        healthy = ~sample.label.flatten(1).any(dim=1) & torch.tensor(self.healthy_from_cases)
        case = self._score(sample, healthy, row)
        if self.pictures:
            row["picture"] = self._draw(sample, case, row)
        self.cases.append(case)

    def _draw(self, sample: Sample, case: CaseScores, row: Mapping[str, Any]) -> str:
        """Draw the slice with the largest lesion (without one: with the most marked pixels); return the file's name."""
        true_positives, marked = case.marked[METHOD][:2]
        dice = float(overlap_from_counts(true_positives, marked, row["lesion_pixels"])["dice"])
        score = f"no lesion, {row['false_positive_pixels']} pixels marked" if math.isnan(dice) else f"Dice {dice:.3f}"
        areas = (sample.label if sample.label.any() else sample.pred_mask).flatten(1).sum(dim=1)
        index = int(areas.argmax())
        planes = {key: part[index].numpy() for key, part in vars(sample).items() if getattr(part, "ndim", 0) == 4}
        where = f", slice {self.first_slice + sample.first_slice + index}" if len(sample.image) > 1 else ""
        name = f"pictures/{sample.name}.png"
        draw_case(planes, self.modalities, f"{sample.name}{where}, {self.title}: {score}", self.folder / name)
        return name

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Score all cases of an evaluator; scans, which are read one by one, go on after each that fails."""
        show = idist.get_rank() == 0
        loader: Any = evaluator.data_loader
        if loader.batch_size == 1 and not isinstance(loader.dataset, SliceDataset):
            self.failures.run(evaluator, show)
            return
        if show:
            ProgressBar(desc="cases").attach(evaluator)
        evaluator.run()

    def finish(self) -> dict[str, Any]:
        """Write ``cases.csv``, ``curves.csv`` and ``summary.json``, print a table, and return the summary.

        With several processes every one returns the summary of all cases, and the first writes it.

        Raises:
            RuntimeError: When no case was evaluated, or some failed; the others are written then.
        """
        shares: Any = idist.all_gather({"cases": self.cases, "failed": self.failures.failed})
        failed = {case: sentence for share in shares for case, sentence in share["failed"].items()}
        found: list[CaseScores] = [case for share in shares for case in share["cases"]]
        cases = sorted(found, key=lambda case: case.row["case"] if case.row else "")
        number = sum(case.row is not None for case in cases)
        if not number:
            raise_failed(failed, len(failed))
            raise RuntimeError("No case was evaluated: set `dataset_dir` to a folder that holds labeled cases.")
        rows, summary, curves = summarize(cases, [METHOD, *self.scores], self.members)
        source = "lesion-free slices of the scored volumes" if self.healthy_from_cases else "validation slices"
        summary = {"method": self.title, **summary, "baseline_threshold_source": source}
        if idist.get_rank() == 0:
            with locked(self.folder / "summary.json", wait=True):
                write_tables(self.folder, rows, summary, curves)
            print_summary(summary, [METHOD, *self.scores], self.folder)
        raise_failed(failed, len(failed) + number)
        return summary


class EvaluationHandler:
    """Hands every item that an evaluator has processed to an ``Evaluation``.

    Args:
        evaluation: Collects the scores of one or more evaluators.
        healthy: Whether the evaluator runs over healthy slices instead of cases, whose lesions are labeled where they
            have any.
    """

    def __init__(self, evaluation: Evaluation, healthy: bool = False):
        self.add = evaluation.add_healthy if healthy else evaluation.add_case
        self.outputs = evaluation.outputs

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator whose items are decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            # postprocessing, as cropping to a range of slices, changes the output alone
            processed = {**item, **{key: value for key, value in output.items() if value is not None}}
            self.add(Sample.from_item(processed, self.outputs))
