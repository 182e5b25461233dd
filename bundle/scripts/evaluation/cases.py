"""Scoring the method and the plain baselines on labeled cases, and writing what was found."""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator
from torch import Tensor

from ..common.batch import Cases, raise_failed
from ..common.outputs import atomic, check_outputs, check_writable, locked
from ..common.share import first_checks
from ..method.frequency import high_frequency
from .metrics import overlap_from_counts, threshold_counts
from .pictures import case_picture
from .samples import Sample, case_row, processed_sample, warn_of_label
from .summaries import (
    METHOD,
    STRIP_FILE,
    CaseScores,
    HealthyScores,
    print_summary,
    read_subsets,
    summarize,
    write_tables,
)

logger = logging.getLogger(__name__)

BELOW_EVERY_SCORE = -1000.0
FILES = ("cases.csv", "curves.csv", "summary.json")


def anomaly_thresholds(thresholds: Sequence[float]) -> np.ndarray:
    """Thresholds at which an anomaly map (squared error) is looked at: 0.6 % apart from 1e-6 to 1e4.

    Args:
        thresholds: The calibrated ones; they are among them exactly.
    """
    grid = np.concatenate([[BELOW_EVERY_SCORE, 0.0], np.geomspace(1e-6, 1e4, 4093), thresholds])
    return np.unique(grid.astype(np.float32))


def zscore_thresholds() -> np.ndarray:
    """Thresholds at which a baseline is looked at: 0.01 standard deviations apart from -10 to 30."""
    return np.concatenate([[BELOW_EVERY_SCORE], np.linspace(-10, 30, 4001)]).astype(np.float32)


def safe_file_name(name: str) -> str:
    """A file name for any case name: harmless characters stay, and a checksum keeps changed names apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")
    return safe if name and safe == name else f"{safe}_{zlib.crc32(name.encode()):08x}"


class Evaluation:
    """Collects scores case by case, in any number of processes, and turns them into tables and pictures.

    Healthy slices give the false-positive fraction, and the baselines their threshold: the one that marks the same
    fraction of the healthy brain as the method does. Labeled cases give everything else. Only counts are kept, about
    0.15 MB a case however large the volumes are.

    Args:
        output_dir: Folder for ``cases.csv``, ``summary.json``, ``curves.csv`` and ``pictures/``.
        thresholds: The label-free thresholds that the method may have, so that the curves hold them; each case brings
            its own, and the masks are scored as they come.
        modalities: Names of the M modalities.
        baselines: Name to a callable that scores slices (D, M, H, W) inside brain pixels (D, 1, H, W); with an
            attribute ``by_volume`` it gets their spacing, with ``threshold`` this is its own.
        image_size: Side of the network's grid in pixels, where the high-frequency image of a picture is made.
        radius: Radius of the frequency mask in bins at ``image_size``; None: the method sees no high-frequency image.
        ssim_data_range: Width of the intensities for SSIM; the brain is scaled to [-3, 3].
        healthy_from_cases: Whether the lesion-free slices of the labeled cases are the healthy ones.
        first_slice: Number of the first slice of a volume, for the captions of the pictures.
        pictures: Whether to draw each case.
        subsets: Name of each subset whose Dice is wanted too to a file with a case name a line.

    Raises:
        OSError: When ``output_dir`` cannot be written.
        ValueError: When a file of ``subsets`` is missing or empty, or a file is in the way that no evaluation wrote.
    """

    def __init__(
        self,
        output_dir: str,
        thresholds: Sequence[float],
        modalities: Sequence[str],
        baselines: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
        image_size: int = 128,
        radius: float | None = None,
        ssim_data_range: float = 6.0,
        healthy_from_cases: bool = False,
        first_slice: int = 0,
        pictures: bool = True,
        subsets: Mapping[str, str] | None = None,
    ):
        self.subsets = read_subsets(subsets or {})
        self.output_dir = Path(output_dir)
        self.lock = ExitStack()
        first_checks(self._check_folder)
        self.failures = Cases()
        self.modalities = list(modalities)
        self.baselines = {f"baseline_{name}_": baseline for name, baseline in baselines.items()}
        self.image_size = image_size
        self.radius = radius
        self.ssim_data_range = ssim_data_range
        self.healthy_from_cases = healthy_from_cases
        self.first_slice = first_slice
        self.pictures = pictures
        self.thresholds = {METHOD: anomaly_thresholds(thresholds)}
        self.thresholds |= {prefix: zscore_thresholds() for prefix in self.baselines}
        self.own = {
            prefix: float(score.threshold) for prefix, score in self.baselines.items() if hasattr(score, "threshold")
        }
        self.cases: list[CaseScores] = []
        self.healthy = HealthyScores()

    def _check_folder(self) -> None:
        check_writable(self.output_dir)
        check_outputs(self.output_dir / name for name in (*FILES, STRIP_FILE))
        self.lock.enter_context(locked(self.output_dir / "summary.json"))

    def _counts(self, sample: Sample) -> dict[str, np.ndarray]:
        maps = {METHOD: sample.anomaly_map}
        for prefix, score in self.baselines.items():
            options = {"spacing": sample.spacing} if getattr(score, "by_volume", False) else {}
            maps[prefix] = score(sample.image, sample.brain_mask, **options)
        label, brain_mask = sample.label.numpy(), sample.brain_mask.numpy()
        return {
            prefix: np.stack(threshold_counts(scores.numpy(), label, brain_mask, self.thresholds[prefix]))
            for prefix, scores in maps.items()
        }

    def add_healthy(self, sample: Sample) -> None:
        """Count what is marked in the brain of healthy slices."""
        self.healthy += HealthyScores(
            slices=int(sample.brain_mask.flatten(1).any(dim=1).sum()),
            brain_pixels=int(sample.brain_mask.sum()),
            mask_pixels=int((sample.pred_mask & sample.brain_mask).sum()),
            counts={prefix: counts[1] for prefix, counts in self._counts(sample).items()},
        )

    def add_case(self, sample: Sample) -> None:
        """Score a labeled case and draw its picture."""
        row = case_row(sample, self.ssim_data_range)
        warn_of_label(sample)
        marked = sample.pred_mask & sample.brain_mask
        mask_counts = np.array([int((marked & sample.label).sum()), int(marked.sum())])
        counts = {prefix: pair.astype(np.int32) for prefix, pair in self._counts(sample).items()}
        if self.pictures:
            dice = float(overlap_from_counts(mask_counts[0], mask_counts[1], row["lesion_pixels"])["dice"])
            without = f"no lesion, {row['false_positive_pixels']} pixels marked"
            row["picture"] = self._draw(sample, without if math.isnan(dice) else f"Dice {dice:.3f}")
        self.cases.append(CaseScores(row, mask_counts, counts, sample.threshold))
        if self.healthy_from_cases:
            lesion_free = ~sample.label.flatten(1).any(dim=1)
            if lesion_free.any():
                self.add_healthy(sample.select(lesion_free))

    def _draw(self, sample: Sample, score: str) -> str:
        """Draw the slice with the largest lesion (without one: with the most marked pixels); return the file's name."""
        areas = [mask.flatten(1).sum(dim=1) for mask in (sample.label, sample.pred_mask)]
        index = int((areas[0] if areas[0].any() else areas[1]).argmax())
        shown = sample.select(torch.arange(len(sample.image)) == index)
        planes = {key: value[0, 0].numpy() for key, value in vars(shown).items() if isinstance(value, Tensor)}
        planes |= {"image": shown.image[0].numpy(), "reconstruction": shown.reconstruction[0].numpy()}
        if self.radius is not None:
            resized = F.interpolate(shown.image, size=[self.image_size] * 2, mode="bilinear", antialias=True)
            small = high_frequency(resized, self.radius)
            planes["high_frequency"] = F.interpolate(small, size=shown.image.shape[-2:], mode="nearest-exact")[
                0
            ].numpy()
        where = f", slice {self.first_slice + index}" if len(sample.image) > 1 else ""
        picture = case_picture(planes, self.modalities, f"{sample.name}{where}: {score}")
        name = f"pictures/{safe_file_name(sample.name)}.png"
        with atomic(self.output_dir / name) as temporary:
            picture.save(temporary)
        return name

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Score all cases of an evaluator; volumes, which come one by one, go on after each that fails."""
        show = idist.get_rank() == 0
        loader: Any = evaluator.data_loader
        if loader.batch_size == 1:
            self.failures.run(evaluator, "volumes", show)
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
        own = {"cases": self.cases, "healthy": self.healthy, "failed": self.failures.failed}
        shares: Any = idist.all_gather(own)
        failed = {case: sentence for share in shares for case, sentence in share["failed"].items()}
        cases = sorted((case for share in shares for case in share["cases"]), key=lambda case: str(case.row["case"]))
        if not cases:
            raise_failed(failed, len(failed))
            raise RuntimeError("No case was evaluated: set `dataset_dir` to a folder that holds labeled cases.")
        healthy = sum((share["healthy"] for share in shares), HealthyScores())
        rows, summary, curves = summarize(cases, healthy, self.thresholds, self.subsets, self.own)
        source = "lesion-free slices of the scored volumes" if self.healthy_from_cases else "validation slices"
        summary["baseline_threshold_source"] = source
        if idist.get_rank() == 0:
            write_tables(self.output_dir, rows, summary, curves)
            print_summary(summary, list(self.thresholds), self.output_dir)
        self.lock.close()
        raise_failed(failed, len(failed) + len(cases))
        return summary


class EvaluationHandler:
    """Hands every item that an evaluator has processed to an ``Evaluation``.

    Args:
        evaluation: Collects the scores of one or more evaluators.
        healthy: Whether the evaluator runs over healthy slices instead of labeled cases.
        unlabeled_are_healthy: Whether cases without a label count as such without lesion.
    """

    def __init__(self, evaluation: Evaluation, healthy: bool = False, unlabeled_are_healthy: bool = False):
        self.label_needed = not (healthy or unlabeled_are_healthy)
        self.add = evaluation.add_healthy if healthy else evaluation.add_case

    def attach(self, engine: Engine) -> None:
        """Listen to an evaluator whose items are decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            if self.label_needed and "label" not in item:
                raise ValueError(f"{item['case']} has no label: preprocess the testing split with its lesion masks.")
            self.add(processed_sample(item, output))
