"""Scoring the method and the plain baselines on labeled cases, and writing what was found."""

from __future__ import annotations

import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import SupervisedEvaluator
from torch import Tensor

from ..common.batch import Cases, raise_failed, shown_list
from ..common.files import atomic, check_writable
from ..common.ownership import begin, claim, lock_folder, settle, unlock_folder
from ..common.share import first_checks
from ..data.brain import lesion_of
from ..data.nifti import load_volume, voxel_ml
from ..data.scans import Subject, find_subjects, mark_unusable
from ..method.frequency import high_frequency
from .metrics import overlap_from_counts, ssim_map, threshold_counts
from .pictures import case_picture
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

REFERENCE_SIZE = 128
BELOW_EVERY_SCORE = -1000.0
STEP = "evaluate"
PICTURES = ("pictures", STRIP_FILE)  # written case by case
FILES = ("cases.csv", "curves.csv", "summary.json", *PICTURES)


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


def find_labeled(
    dataset_dir: str,
    modalities: Sequence[str],
    split: str | Sequence[str] | None = None,
    label: str = "seg",
    brain_mask: str | None = None,
    slice_range: Sequence[int] | None = None,
    allow_outside: bool = False,
    exclude: str | Sequence[str] | None = None,
    unlabeled_are_healthy: bool = False,
) -> list[Subject]:
    """List the scans of a folder to be scored, see `find_subjects`, and check their headers.

    Scans without a label are healthy on request. Otherwise they are left out of a folder and told, or marked as
    unusable where ``split`` names them.

    Args:
        dataset_dir: Folder of scans, or a datalist.
        modalities: File name endings, in the order of the channels.
        split: Case names, a split file, or None for all there is.
        label: File name ending of lesion masks.
        brain_mask: File name ending of brain masks; None: voxels unlike the background are brain.
        slice_range: First axial slice and the one after the last; None: all.
        allow_outside: As in `find_subjects`.
        exclude: Likewise.
        unlabeled_are_healthy: Take scans without a label as such without lesion.

    Returns:
        The scans, with ``voxel_ml``, and with ``error`` where one cannot be used.

    Raises:
        FileNotFoundError: When a file is missing, or every label.
        ValueError: When no scan can be used.
    """
    subjects = find_subjects(dataset_dir, modalities, split, label, brain_mask, allow_outside, exclude)
    if unlabeled_are_healthy:
        _tell_healthy([subject["case"] for subject in subjects if not {"label", "error"} & subject.keys()], label)
    else:
        subjects = _labeled(subjects, label, named=split is not None)
    usable = mark_unusable(subjects, slice_range)
    return [
        subject if "error" in subject else {**subject, "voxel_ml": voxel_ml(load_volume(subject["image"][0]).affine)}
        for subject in usable
    ]


def _labeled(subjects: Sequence[Subject], label: str, named: bool) -> list[Subject]:
    """The subjects that have a label; of those that were named, the others too, with their sentence as ``error``."""
    lacking = {
        case: f"{case} has no label: expected {case}_{label}.nii.gz beside its images; exclude the case, change "
        "`label`, or set `unlabeled_are_healthy`."
        for case in (subject["case"] for subject in subjects if not {"label", "error"} & subject.keys())
    }
    if lacking and len(lacking) == len(subjects):
        raise FileNotFoundError(next(iter(lacking.values())))
    if named:
        return [{**case, "error": lacking[case["case"]]} if case["case"] in lacking else case for case in subjects]
    if lacking and os.environ.get("RANK", "0") == "0":
        print(f"Without a label, left out (`unlabeled_are_healthy` takes them as healthy): {len(lacking)}")
        print("\n".join(shown_list([*lacking])))
    return [subject for subject in subjects if subject["case"] not in lacking]


def _tell_healthy(cases: Sequence[str], label: str) -> None:
    """Print which cases count as healthy for want of a label."""
    if cases and os.environ.get("RANK", "0") == "0":
        print(f"Without a label (CASE_{label}.nii.gz), taken as healthy: {len(cases)}")
        print("\n".join(shown_list(cases)))


def as_slices(array: Tensor) -> Tensor:
    """Slices (D, C, H, W) of a volume (C, H, W, D); a slice (C, H, W) becomes a batch of one."""
    plain = torch.as_tensor(array).detach().float().cpu().as_subclass(Tensor)
    return plain[None] if plain.ndim == 3 else plain.movedim(-1, 0)


def _spacing(image: Tensor) -> tuple[float, ...]:
    """Of a volume's slices, rows and columns in mm; 1 where it has no meta data, or is a slice."""
    if not isinstance(image, MetaTensor) or image.ndim < 4:
        return 1.0, 1.0, 1.0
    rows, columns, slices = affine_to_spacing(image.affine).tolist()
    return slices, rows, columns


@dataclass
class Sample:
    """One case taken apart: its D slices, and what the inferer made of them.

    ``image`` and ``reconstruction`` are (D, M, H, W), the others (D, 1, H, W); ``brain_mask``, ``label`` and
    ``pred_mask`` are bool. ``voxel_ml`` is the volume of a voxel, NaN where it is not known; ``spacing`` that between
    slices, rows and columns in mm, 1 where it is not known. ``threshold`` is that of the anomaly map.
    """

    name: str
    image: Tensor
    brain_mask: Tensor
    label: Tensor
    pred_mask: Tensor
    anomaly_map: Tensor
    reconstruction: Tensor
    passes: Tensor
    threshold: float
    voxel_ml: float = math.nan
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_item(cls, item: Mapping) -> Sample:
        """Read one decollated item of an evaluator.

        Args:
            item: ``image`` (M + 1, H, W[, D]), modalities and brain mask; ``label`` (1, H, W[, D]), or
                none when it is healthy; ``pred`` (M + 4, H, W[, D]), mask, anomaly map, reconstruction, passes
                and threshold; ``case``; ``slice`` and ``voxel_ml`` if it has them.

        Raises:
            ValueError: When ``pred`` has other channels.
        """
        inputs, pred = as_slices(item["image"]), as_slices(item["pred"])
        label = as_slices(item["label"]) if "label" in item else torch.zeros_like(inputs[:, :1])
        lesion = lesion_of(label, str(item["case"]))
        channels = inputs.shape[1] + 3
        if pred.shape[1] != channels:
            raise ValueError(
                "The inferer must return mask, anomaly_map, reconstruction, passes and threshold, "
                f"{channels} channels in all, got {pred.shape[1]}: set inferer#outputs to these five."
            )
        name = str(item["case"]) if "slice" not in item else f"{item['case']}_{int(item['slice']):03d}"
        return cls(
            name=name,
            image=inputs[:, :-1],
            brain_mask=inputs[:, -1:] > 0.5,
            label=lesion,
            pred_mask=pred[:, :1] > 0.5,
            anomaly_map=pred[:, 1:2],
            reconstruction=pred[:, 2:-2],
            passes=pred[:, -2:-1],
            threshold=float(pred[:, -1].max()),
            voxel_ml=float(item.get("voxel_ml", math.nan)),
            spacing=_spacing(item["image"]),
        )

    def select(self, chosen: Tensor) -> Sample:
        """The chosen slices alone, by a bool (D,)."""
        parts: dict[str, Any] = {key: value[chosen] for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)


def processed_sample(item: Mapping, output: Mapping) -> Sample:
    """One decollated item of an evaluator with its output, after postprocessing, which changes the output alone."""
    return Sample.from_item({**item, **{key: value for key, value in output.items() if value is not None}})


def warn_of_label(sample: Sample) -> None:
    """Warn of a label that is probably none of lesions: it covers most of the brain, or lies outside of it."""
    lesion, brain = int(sample.label.sum()), int(sample.brain_mask.sum())
    inside = int((sample.label & sample.brain_mask).sum())
    if 2 * inside > brain or 2 * inside < lesion:
        sentence = "expected lesions inside the brain; check whether it is one of tissues, or an inverted mask."
        logger.warning(
            f"{sample.name} has a label that covers {inside / max(1, brain):.0%} of the brain, with "
            f"{1 - inside / max(1, lesion):.0%} of it outside, {sentence}",
            extra={"together": f"labels of most of the brain, or mostly outside of it, {sentence}", "counts": ()},
        )


def healthy_ssim(sample: Sample, data_range: float) -> dict[str, float]:
    """SSIM of the reconstruction where there is no lesion, everything else set to 0 in both images.

    Args:
        sample: A case; slices without brain do not count.
        data_range: Width of the intensities.

    Returns:
        ``ssim_healthy``, over the whole slices as published, where the background counts as perfect, and
        ``ssim_healthy_brain``, over the healthy brain pixels alone.
    """
    healthy = sample.brain_mask & ~sample.label
    used = healthy.flatten(1).any(dim=1)
    if not used.any():
        return {"ssim_healthy": math.nan, "ssim_healthy_brain": math.nan}
    healthy = healthy[used]
    similarity = ssim_map(sample.image[used] * healthy, sample.reconstruction[used] * healthy, data_range)
    inside = (similarity * healthy).sum() / (healthy.sum() * similarity.shape[1])
    return {"ssim_healthy": float(similarity.mean()), "ssim_healthy_brain": float(inside)}


def case_row(sample: Sample, data_range: float) -> dict[str, Any]:
    """The columns of a case that need no threshold."""
    height, width = sample.image.shape[-2:]
    lesion_pixels = sample.label.flatten(1).sum(dim=1)
    healthy = sample.brain_mask & ~sample.label
    with_brain = sample.brain_mask.flatten(1).any(dim=1)
    passes = sample.passes.flatten(1).amax(dim=1)[with_brain]
    false_positives = int((sample.pred_mask & healthy).sum())
    return {
        "case": sample.name,
        "lesion_pixels": int(lesion_pixels.sum()),
        "lesion_pixels_128": float(lesion_pixels.max()) * REFERENCE_SIZE**2 / (height * width),
        "brain_pixels": int(sample.brain_mask.sum()),
        "false_positive_pixels": false_positives,
        "false_positive_ml": false_positives * sample.voxel_ml,
        "false_positive_fraction": false_positives / max(1, int(healthy.sum())),
        "network_passes": float(passes.mean()) if len(passes) else 0.0,
        **healthy_ssim(sample, data_range),
    }


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
        self.files = [name for name in FILES if pictures or name not in PICTURES]
        first_checks(self._claim_folder)
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

    def _claim_folder(self) -> None:
        lock_folder(check_writable(self.output_dir))
        claim(self.output_dir, STEP, self.files)
        begin(self.output_dir, STEP, [name for name in self.files if name in PICTURES])

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
            begin(self.output_dir, STEP, self.files)
            write_tables(self.output_dir, rows, summary, curves)
            settle(self.output_dir, STEP, self.files)
            print_summary(summary, list(self.thresholds), self.output_dir)
        unlock_folder(self.output_dir)
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
