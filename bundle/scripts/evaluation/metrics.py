"""How well masks and anomaly maps find lesions: pure functions, no files and no engine in them."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from monai.metrics.regression import KernelType, compute_ssim_and_cs
from scipy import ndimage
from scipy.stats import bootstrap
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
LESION_COLUMNS = ("lesions", "lesions_found", "components", "false_components", "lesion_f1")
LEAST_LESION = 0.01  # ml; smaller pieces of a label do not count as lesions


def _ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float | np.ndarray) -> np.ndarray:
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    ratio = numerator / np.maximum(denominator, 1)
    return np.where(denominator == 0, empty, ratio)


def overlap_from_counts(
    true_positives: np.ndarray, predicted: np.ndarray, labeled: np.ndarray
) -> dict[str, np.ndarray]:
    """Dice, sensitivity and precision of masks whose pixels were counted.

    Without a lesion Dice and sensitivity say nothing, so they are NaN, as they are in MONAI's ``DiceMetric`` (false
    positives on such images are reported apart). A mask that marks nothing although there is a lesion has Dice,
    sensitivity and precision 0.

    Args:
        true_positives: Pixels that are marked and labeled.
        predicted: Pixels that are marked.
        labeled: Pixels that are labeled. The three broadcast against each other.
    """
    missing = np.where(np.asarray(labeled) > 0, 0.0, np.nan)
    scores = {
        "dice": _ratio(2 * np.asarray(true_positives), np.asarray(predicted) + np.asarray(labeled), np.nan),
        "sensitivity": _ratio(true_positives, labeled, np.nan),
        "precision": _ratio(true_positives, predicted, missing),
    }
    return {name: score + missing for name, score in scores.items()}


def lesion_scores(pred_mask: np.ndarray, label: np.ndarray, voxel_ml: float = math.nan) -> dict[str, float]:
    """Count the lesions and the marked components of one case: 26 neighbors in a volume, 8 in a slice.

    A lesion of at least 10 mm3 counts (any, where ``voxel_ml`` is NaN), and is found when a marked voxel lies in it. A
    marked component is false when none of its voxels is labeled.

    Returns:
        The `LESION_COLUMNS`; ``lesion_f1`` is 2TP / (2TP + FP + FN) of found lesions, false components and missed
        lesions, NaN where no lesion counts.
    """
    neighbors = np.ones((3,) * label.ndim)
    lesion_numbers, lesions = ndimage.label(label, neighbors)
    component_numbers, components = ndimage.label(pred_mask, neighbors)
    sizes = np.bincount(lesion_numbers.ravel(), minlength=lesions + 1)[1:]
    touched = np.bincount(lesion_numbers[pred_mask], minlength=lesions + 1)[1:] > 0
    counts = np.ones(lesions, bool) if math.isnan(voxel_ml) else sizes * voxel_ml >= LEAST_LESION * (1 - 1e-6)
    number, found = int(counts.sum()), int((counts & touched).sum())
    false = components - len(np.unique(component_numbers[pred_mask & label]))
    f1 = 2 * found / (found + false + number) if number else math.nan
    return dict(zip(LESION_COLUMNS, (number, found, components, false, f1), strict=True))


def ssim_map(image: Tensor, reconstruction: Tensor, data_range: float) -> Tensor:
    """Structural similarity around every pixel, in a Gaussian window of 11 pixels with sigma 1.5.

    The border is reflected, so the map has the size of the images, (N, M, H, W), which are at least 6 pixels wide.
    ``data_range`` is the largest minus the smallest value that they can take.
    """
    border = [SSIM_WINDOW // 2] * 4
    first, second = (F.pad(slices, border, mode="reflect") for slices in (image, reconstruction))
    window, sigma = [SSIM_WINDOW] * 2, [SSIM_SIGMA] * 2
    return compute_ssim_and_cs(first, second, 2, window, sigma, data_range, KernelType.GAUSSIAN)[0]


def counts_above(scores: np.ndarray, thresholds: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """Count the pixels of some groups, bool (P,), whose score (P,) is above each of many thresholds, ascending (T,).

    Returns:
        A row for each group, int64 (G, T); exact.
    """
    below = np.searchsorted(thresholds, scores, side="left")  # number of thresholds below the score
    found = [np.bincount(below[group], minlength=len(thresholds) + 1) for group in groups]
    return np.stack([np.cumsum(counts[::-1])[::-1][1:] for counts in found])


def average_precision(true_positives: np.ndarray, predicted: np.ndarray, labeled: int) -> float:
    """Area under the precision-recall steps of a score, from its ``counts_above`` in the lesion and in all.

    Scores between two neighboring thresholds count as equal. Of the ``labeled`` pixels those below every threshold
    count as never found, as do those outside the brain. NaN without a lesion.
    """
    if labeled == 0:
        return float("nan")
    hits, marked = np.asarray(true_positives)[::-1], np.asarray(predicted)[::-1]
    recall_steps = np.diff(hits, prepend=0) / labeled
    return float((recall_steps * _ratio(hits, marked, 0.0)).sum())


def threshold_at_fraction(predicted: np.ndarray, brain_pixels: int, fraction: float) -> int:
    """The number of the lowest threshold that marks no more than ``fraction`` of the (healthy) brain; else the last.

    ``predicted`` (T,) are the pixels above each threshold, in ascending order of the thresholds.
    """
    low_enough = predicted <= fraction * brain_pixels
    return int(np.argmax(low_enough)) if low_enough.any() else len(predicted) - 1


def bootstrap_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of a mean over cases (N,); NaN cases are left out.

    The draws depend on ``seed`` alone, and the global random state is not touched.
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) < 2:  # of which SciPy draws nothing
        mean = float(values[0]) if len(values) else float("nan")
        return mean, mean
    drawn = bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed))
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
