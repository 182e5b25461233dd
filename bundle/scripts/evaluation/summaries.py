"""From the counts of single cases to one summary: means, upper bounds, intervals, and the files that hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..common.outputs import write_csv, write_json
from ..data.lists import read_split
from .metrics import average_precision, bootstrap_interval, overlap_from_counts, threshold_at_fraction

STRIP_FILE = "iterations.png"
METHOD = ""  # the prefix of the method's own columns; a baseline's is "baseline_<name>_"
SUMMARY_COLUMNS = {
    "Dice": "dice",
    "small": "dice_small",
    "medium": "dice_medium",
    "large": "dice_large",
    "sens.": "sensitivity",
    "prec.": "precision",
    "AP": "average_precision",
    "FP frac.": "false_positive_fraction",
    "upper bound": "dice_upper_bound",
}
SIZE_CLASSES = {"small": (1, 200), "medium": (200, 800), "large": (800, math.inf)}


@dataclass
class CaseScores:
    """What is kept of a case: a row of the table, and counts from which every threshold can be scored.

    ``counts`` holds true positives and marked pixels per threshold, (2, T), for the method and each baseline.
    ``threshold`` is what the method applied to its map.
    """

    row: dict[str, Any]
    mask_counts: np.ndarray
    counts: dict[str, np.ndarray]
    threshold: float


@dataclass
class HealthyScores:
    """Pixels that are marked in healthy slices, summed over all of them."""

    slices: int = 0
    brain_pixels: int = 0
    mask_pixels: int = 0
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def __add__(self, other: HealthyScores) -> HealthyScores:
        names = self.counts.keys() | other.counts.keys()
        return HealthyScores(
            self.slices + other.slices,
            self.brain_pixels + other.brain_pixels,
            self.mask_pixels + other.mask_pixels,
            {name: np.add(self.counts.get(name, 0), other.counts.get(name, 0)) for name in names},
        )


def mean(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else math.nan


def size_class_means(name: str, values: np.ndarray, lesion_pixels_128: np.ndarray) -> dict[str, float]:
    """Means over the cases with a small, a medium and a large lesion, as ``<name>_small`` and so on."""
    means = {}
    for size, (low, high) in SIZE_CLASSES.items():
        means[f"{name}_{size}"] = mean(values[(lesion_pixels_128 >= low) & (lesion_pixels_128 < high)])
    return means


def summarize_score(
    label_free: np.ndarray,
    counts: np.ndarray,
    labeled: np.ndarray,
    lesion_pixels_128: np.ndarray,
    thresholds: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, np.ndarray]]:
    """Score a method over all cases: at its own masks, and over the thresholds of its map.

    The upper bound is the best mean Dice that one threshold for all cases reaches, chosen on the very labels it is
    scored with; the per-image best lets every case choose its own. Neither is a result of the method, and both bound
    only masks that are the map above a threshold: connected areas chosen by more than that may score higher.

    Args:
        label_free: True positives and marked pixels of the masks, (N, 2).
        counts: The same per threshold, (N, 2, T).
        labeled: Lesion pixels, (N,).
        lesion_pixels_128: Lesion size at 128 x 128, (N,).
        thresholds: (T,).

    Returns:
        Columns of the case table, (N,) each; entries of the summary; columns of the curve, (T,) each.
    """
    columns = overlap_from_counts(label_free[:, 0], label_free[:, 1], labeled)
    curves = overlap_from_counts(counts[:, 0], counts[:, 1], labeled[:, None])
    with_lesion = labeled > 0
    nothing = np.full(len(thresholds), np.nan)
    curve = {name: values[with_lesion].mean(axis=0) for name, values in curves.items() if with_lesion.any()}
    curve = curve or dict.fromkeys(curves, nothing)
    curve |= {"lesion_pixels_above": counts[:, 0].sum(axis=0), "pixels_above": counts[:, 1].sum(axis=0)}
    best = int(np.argmax(curve["dice"])) if with_lesion.any() else 0
    columns["dice_upper_bound"] = curves["dice"][:, best]
    columns["dice_per_image_best"] = curves["dice"].max(axis=1)
    columns["average_precision"] = np.array(
        [average_precision(hits, marked, size) for (hits, marked), size in zip(counts, labeled, strict=True)]
    )
    summary = {name: mean(values) for name, values in columns.items()}
    summary["dice_ci_low"], summary["dice_ci_high"] = bootstrap_interval(columns["dice"])
    summary["threshold_upper_bound"] = float(thresholds[best]) if with_lesion.any() else math.nan
    summary["sensitivity_upper_bound"] = mean(curves["sensitivity"][:, best])
    summary["precision_upper_bound"] = mean(curves["precision"][:, best])
    summary["average_precision_per_image"] = summary["average_precision"]
    summary["average_precision"] = average_precision(
        counts[:, 0].sum(axis=0), counts[:, 1].sum(axis=0), int(labeled.sum())
    )
    for name in ("dice", "dice_upper_bound"):
        summary |= size_class_means(name, columns[name], lesion_pixels_128)
    return columns, summary, curve


def label_free_counts(
    prefix: str,
    cases: Sequence[CaseScores],
    healthy: HealthyScores,
    thresholds: np.ndarray,
    threshold: float,
    own: float | None = None,
) -> tuple[np.ndarray, dict[str, float]]:
    """What each score marks without having seen a label.

    The method has its masks. A baseline takes the threshold that marks no more of the healthy brain than they do.

    Args:
        prefix: Which score.
        cases: All cases.
        healthy: All healthy slices; without any, a baseline has no threshold and the fractions are NaN.
        thresholds: Those that were counted, (T,).
        threshold: The method's own.
        own: A baseline's own threshold, which needs no healthy brain.

    Returns:
        True positives and marked pixels of each case, (N, 2), and the threshold and false-positive fraction.
    """
    fraction = healthy.mask_pixels / healthy.brain_pixels if healthy.brain_pixels else math.nan
    if prefix == METHOD:
        masks = np.stack([case.mask_counts for case in cases])
        return masks, {"threshold": threshold, "false_positive_fraction": fraction}
    if own is None and not healthy.brain_pixels:
        nothing = np.full((len(cases), 2), np.nan)
        return nothing, {"threshold": math.nan, "false_positive_fraction": math.nan}
    marked = healthy.counts.get(prefix, np.zeros(len(thresholds)))
    if own is None:
        own = threshold_at_fraction(marked, healthy.brain_pixels, fraction, thresholds)
    index = min(int(np.searchsorted(thresholds, np.float32(own))), len(thresholds) - 1)
    masks = np.stack([case.counts[prefix][:, index] for case in cases])
    false = float(marked[index] / healthy.brain_pixels) if healthy.brain_pixels else math.nan
    return masks, {"threshold": own, "false_positive_fraction": false}


def read_subsets(subsets: Mapping[str, str]) -> dict[str, set[str]]:
    """Read the files that name the cases of each subset, one a line.

    Raises:
        ValueError: When a file is missing or empty, or a name is that of a size class.
    """
    if not SIZE_CLASSES.keys().isdisjoint(subsets):
        raise ValueError(
            f"`subsets` must not use the names {', '.join(SIZE_CLASSES)}, which are classes of lesion size: "
            "name it otherwise."
        )
    names = {}
    for name, file in subsets.items():
        if not Path(file).is_file():
            raise ValueError(
                f"`subsets` expects a file with a case name a line for {name}, {file} is missing: correct its path."
            )
        names[name] = {*read_split(str(file))}
    return names


def subset_means(dice: Mapping[str, np.ndarray], members: np.ndarray, name: str) -> dict[str, Any]:
    """Mean Dice of each score over the cases of a subset, and how far the method is ahead of each baseline there.

    Args:
        dice: Prefix of each score to its Dice of all cases, (N,).
        members: Which cases belong to the subset, bool (N,).
        name: Of the subset; "" for all cases, whose mean Dice stands elsewhere.
    """
    suffix = f"_{name}" if name else ""
    found: dict[str, Any] = {f"cases{suffix}": int(members.sum())} if name else {}
    for prefix, values in dice.items():
        parts = {f"{prefix}dice{suffix}": values[members]} if name else {}
        if prefix != METHOD:  # paired, case by case
            parts[f"{prefix}difference{suffix}"] = dice[METHOD][members] - values[members]
        for key, part in parts.items():
            low, high = bootstrap_interval(part)
            found |= {key: mean(part), f"{key}_ci_low": low, f"{key}_ci_high": high}
    return found


def summarize(
    cases: Sequence[CaseScores],
    healthy: HealthyScores,
    thresholds: Mapping[str, np.ndarray],
    subsets: Mapping[str, set[str]] | None = None,
    own: Mapping[str, float] | None = None,
) -> tuple[list[dict], dict[str, Any], list[dict]]:
    """Score the method and the baselines over all cases.

    Args:
        cases: All cases, at least one.
        healthy: All healthy slices.
        thresholds: Prefix of each score to the thresholds that were counted, (T,).
        subsets: Name of each subset of the cases to the names of its cases (or of their slices).
        own: Prefix of a baseline to its own threshold, where it has one.

    Returns:
        Rows of the case table, the summary, and rows of the curves over thresholds.
    """
    rows = [dict(case.row) for case in cases]
    labeled = np.array([row["lesion_pixels"] for row in rows])
    sizes = np.array([row["lesion_pixels_128"] for row in rows])
    applied = {case.threshold for case in cases}
    threshold = applied.pop() if len(applied) == 1 else math.nan  # whole volumes and slices have each their own
    summary: dict[str, Any] = {"cases": len(rows)}
    curves: list[dict] = []
    for prefix, grid in thresholds.items():
        label_free, operating_point = label_free_counts(
            prefix, cases, healthy, grid, threshold, (own or {}).get(prefix)
        )
        counts = np.stack([case.counts[prefix] for case in cases])
        columns, scores, curve = summarize_score(label_free, counts, labeled, sizes, grid)
        summary |= {prefix + name: value for name, value in (scores | operating_point).items()}
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[prefix + name] = float(value)
        curve |= {"healthy_pixels_above": healthy.counts.get(prefix, np.zeros(len(grid), int))}
        curves += _curve_rows(prefix.removesuffix("_") or "anomaly_map", {"threshold": grid, **curve})
    dice = {prefix: np.array([row[f"{prefix}dice"] for row in rows]) for prefix in thresholds}
    for name, names in {"": None, **(subsets or {})}.items():
        members = np.array([names is None or not names.isdisjoint(_names(row)) for row in rows])
        summary |= subset_means(dice, members, name)
    for name in ("ssim_healthy", "ssim_healthy_brain", "network_passes"):
        summary[name] = mean([row[name] for row in rows])
    for size, (low, high) in SIZE_CLASSES.items():
        summary[f"cases_{size}"] = int(((sizes >= low) & (sizes < high)).sum())
    summary["healthy_slices"] = healthy.slices
    summary |= without_lesion(rows)
    return rows, summary, curves


def _curve_rows(score: str, columns: Mapping[str, np.ndarray]) -> list[dict]:
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"score": score, **dict(zip(columns, row, strict=True))} for row in values]


def without_lesion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many cases have no lesion, and the means over them of what is marked there, all of it false."""
    healthy = [row for row in rows if row["lesion_pixels"] == 0]
    names = ("false_positive_ml", "false_positive_pixels", "false_positive_fraction")
    means = {f"{name}_without_lesion": mean([row[name] for row in healthy]) for name in names}
    known = {name: value for name, value in means.items() if not math.isnan(value)}
    return {"cases_without_lesion": len(healthy), **known}


def _names(row: Mapping[str, Any]) -> set[str]:
    """A case's own name, and for a slice that of its scan."""
    return {str(row["case"]), str(row["case"]).rpartition("_")[0]}


def _no_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def write_tables(
    output_dir: Path, rows: Sequence[Mapping], summary: Mapping[str, Any], curves: Sequence[Mapping]
) -> None:
    """Write ``cases.csv``, ``curves.csv`` and ``summary.json``; what is undefined is empty there, or null."""
    for name, lines in (("cases.csv", rows), ("curves.csv", curves)):
        write_csv(output_dir / name, [*lines[0]], map(_no_nan, lines))
    write_json(output_dir / "summary.json", _no_nan(summary))


def summary_table(summary: Mapping[str, Any], prefixes: Sequence[str]) -> str:
    """The main numbers as text, a line for the method and each baseline."""
    lines = ["".join([f"{'':24}"] + [f"{title:>12}" for title in SUMMARY_COLUMNS])]
    for prefix in prefixes:
        name = prefix.removesuffix("_").replace("_", " ") or "IterMask"
        values = [summary[prefix + key] for key in SUMMARY_COLUMNS.values()]
        lines.append("".join([f"{name:24}"] + [f"{'-' if math.isnan(v) else format(v, '.4f'):>12}" for v in values]))
    return "\n".join(lines)


def healthy_words(summary: Mapping[str, Any]) -> str:
    """What is marked in the cases without lesion, as a sentence; empty where there is none."""
    number = int(summary.get("cases_without_lesion") or 0)
    if not number:
        return ""
    ml, pixels, fraction = (
        summary.get(f"false_positive_{name}_without_lesion") for name in ("ml", "pixels", "fraction")
    )
    size = f"{pixels:.1f} pixels" if ml is None else f"{ml:.2f} ml"
    cases = "1 case" if number == 1 else f"{number} cases"
    return f"{cases} without lesion: {size} marked in each on average, {fraction:.3%} of the brain, all of it false."


def _named(threshold: float) -> str:
    """What an evaluation says of its threshold; NaN where volumes and slices had each their own."""
    return "thresholds of volumes and of slices" if math.isnan(threshold) else f"threshold {threshold:.4g}"


def print_summary(summary: Mapping[str, Any], prefixes: Sequence[str], output_dir: Path) -> None:
    """Say what was found and where it lies."""
    if summary["cases"] > summary["cases_without_lesion"]:
        _print_scores(summary, prefixes)
    if words := healthy_words(summary):
        print(words)
    for name in ("summary.json", "cases.csv", "curves.csv", "pictures"):
        if (output_dir / name).exists():
            print(f"  {output_dir / name}")


def _print_scores(summary: Mapping[str, Any], prefixes: Sequence[str]) -> None:
    """What says something where there are lesions alone."""
    print(summary_table(summary, prefixes))
    print(
        f"{summary['cases']} cases ({summary['cases_small']} small, {summary['cases_medium']} medium, "
        f"{summary['cases_large']} large), {summary['healthy_slices']} healthy slices; the upper bound chooses its "
        "threshold on the test labels."
    )
    print(
        f"Dice {summary['dice']:.4f} (95 % interval {summary['dice_ci_low']:.4f} to {summary['dice_ci_high']:.4f}) "
        f"at the label-free {_named(summary['threshold'])}"
    )
    for name in sorted(key.removeprefix("cases_") for key in summary if key.startswith("cases_")):
        if f"dice_{name}_ci_low" in summary:
            print(
                f"{name}: Dice {summary[f'dice_{name}']:.4f} ({summary[f'dice_{name}_ci_low']:.4f} to "
                f"{summary[f'dice_{name}_ci_high']:.4f}), {summary[f'cases_{name}']} cases"
            )
