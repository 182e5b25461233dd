"""From the counts of single cases to one summary: means, intervals, and the files that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..common.outputs import write_csv, write_json
from ..data.lists import read_split
from .metrics import LESION_COLUMNS, average_precision, bootstrap_interval, overlap_from_counts, threshold_at_fraction

TABLES = ("summary.json", "cases.csv", "curves.csv")  # what an evaluation writes beside pictures
METHOD = ""  # the prefix of the method's own columns; a baseline's is "baseline_<name>_"
SUMMARY_COLUMNS = {
    "Dice": "dice",
    "small": "dice_small",
    "medium": "dice_medium",
    "large": "dice_large",
    "sens.": "sensitivity",
    "prec.": "precision",
    "AP": "average_precision",
    "lesion F1": "lesion_f1",
    "false comp.": "false_components",
    "FP frac.": "false_positive_fraction",
    "best thr.": "dice_best_threshold",
}
SIZE_CLASSES = {"small": (1, 200), "medium": (200, 800), "large": (800, math.inf)}  # pixels, at 128 x 128
BELOW_EVERY_SCORE = -1000.0


def _grid(*parts: ArrayLike) -> np.ndarray:
    return np.unique(np.concatenate([np.asarray(part, np.float32) for part in parts]))


# of squared errors 0.6 % apart, and finer near 1, for probabilities
MAP_THRESHOLDS = _grid([BELOW_EVERY_SCORE, 0], np.geomspace(1e-6, 1e4, 4093), 1 - np.geomspace(1e-6, 0.01, 200))
BASELINE_THRESHOLDS = _grid([BELOW_EVERY_SCORE], np.linspace(-10, 30, 4001))  # standard deviations


def thresholds_of(prefix: str) -> np.ndarray:
    """The thresholds at which a score is looked at, ascending, (T,): the anomaly map's, or a baseline's."""
    return MAP_THRESHOLDS if prefix == METHOD else BASELINE_THRESHOLDS


@dataclass
class CaseScores:
    """What is kept of a case: a row of the table, and counts of marked pixels: in lesions, of all, in healthy slices.

    ``marked`` (3,) is that of the method's mask and of each baseline's that has a threshold of its own, ``counts``
    (3, T) that of every threshold of each score. ``row`` is None for healthy slices, which give the third count alone.
    """

    row: dict[str, Any] | None
    healthy_slices: int
    healthy_pixels: int
    thresholds: dict[str, float] = field(default_factory=dict)  # of those in ``marked``
    marked: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)


def mean(values: ArrayLike) -> float:
    """Mean of the values that are not NaN; NaN when there is none."""
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if len(numbers) else math.nan


def with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean as ``<name>``, and its 95 % interval as ``<name>_ci_low`` and ``<name>_ci_high``."""
    low, high = bootstrap_interval(values)
    return {name: mean(values), f"{name}_ci_low": low, f"{name}_ci_high": high}


def summarize_score(
    marked: np.ndarray, counts: np.ndarray, labeled: np.ndarray, thresholds: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, np.ndarray]]:
    """Score a method by true positives and marked pixels: of its masks, (N, 2), and per threshold, (N, 2, T).

    The best single threshold is the one for all cases with the highest mean Dice, chosen on the very labels it is
    scored with; the per-image best lets every case choose its own. Neither is a result of the method, nor a bound of
    it: masks that are more than the map above one threshold may score higher.

    Returns:
        Columns of the case table, (N,) each; entries of the summary; columns of the curve, (T,) each.
    """
    columns = overlap_from_counts(marked[:, 0], marked[:, 1], labeled)
    curves = overlap_from_counts(counts[:, 0], counts[:, 1], labeled[:, None])
    columns["dice_per_image_best"] = curves["dice"].max(axis=1)
    columns["average_precision"] = np.array(
        [average_precision(hits, above, size) for (hits, above), size in zip(counts, labeled, strict=True)]
    )
    hits, above = counts.sum(axis=0)
    summary = {name: mean(values) for name, values in columns.items()}
    summary["average_precision"] = average_precision(hits, above, int(labeled.sum()))
    lesioned = labeled > 0
    curve = {name: scores[lesioned].sum(axis=0) / (lesioned.sum() or math.nan) for name, scores in curves.items()}
    best = int(np.argmax(curve["dice"]))
    summary |= {f"{name}_best_threshold": float(scores[best]) for name, scores in curve.items()}
    summary["best_threshold"] = float(thresholds[best]) if lesioned.any() else math.nan
    return columns, summary, curve | {"lesion_pixels_above": hits, "pixels_above": above}


def masks_of(prefix: str, cases: Sequence[CaseScores]) -> tuple[float, np.ndarray]:
    """The threshold of a score, and the counts (N, 3) of its masks.

    A baseline without a threshold of its own takes the one at which it marks no more of the healthy slices than the
    method does, which knows no label. The threshold is NaN where there is none, or not one for all cases.
    """
    if prefix in cases[0].marked:
        applied = {case.thresholds[prefix] for case in cases if case.row is not None}  # slices and volumes have others
        threshold = applied.pop() if len(applied) == 1 else math.nan
        return threshold, np.array([case.marked[prefix] for case in cases])
    pixels = sum(case.healthy_pixels for case in cases)
    if not pixels:
        return math.nan, np.full((len(cases), 3), np.nan)
    fraction = sum(case.marked[METHOD][2] for case in cases) / pixels
    index = threshold_at_fraction(sum(case.counts[prefix][2] for case in cases), pixels, fraction)
    return float(thresholds_of(prefix)[index]), np.array([case.counts[prefix][:, index] for case in cases])


def read_subsets(subsets: Mapping[str, str]) -> dict[str, set[str]]:
    """Read the files that name the cases of each subset, one a line.

    Raises:
        FileNotFoundError: When a file is missing.
        ValueError: When a file is empty, or a name is that of a size class.
    """
    if not SIZE_CLASSES.keys().isdisjoint(subsets):
        raise ValueError(
            f"`subsets` must not use the names {', '.join(SIZE_CLASSES)}, which are classes of lesion size: "
            "name it otherwise."
        )
    return {name: {*read_split(file, f"The subset {name}")} for name, file in subsets.items()}


def _members(rows: Sequence[Mapping[str, Any]], subsets: Mapping[str, set[str]]) -> dict[str, np.ndarray]:
    """Which cases belong to all (""), to each size class and to each subset, (N,), bool.

    A subset names cases, or the scans of slices.
    """
    sizes = np.array([row["lesion_pixels_128"] for row in rows])
    names = [{row["case"], row["case"].rpartition("_")[0]} for row in rows]
    members = {"": np.ones(len(rows), bool)}
    members |= {name: (low <= sizes) & (sizes < high) for name, (low, high) in SIZE_CLASSES.items()}
    return members | {name: np.array([not subset.isdisjoint(own) for own in names]) for name, subset in subsets.items()}


def group_means(dice: Mapping[str, np.ndarray], members: np.ndarray, name: str) -> dict[str, Any]:
    """Mean Dice of each score over the cases of a group, and how far the method is ahead of each baseline there.

    ``dice`` (N,) and ``members`` (N,), bool, are of all cases; the name of the group is "" for all of them.
    """
    suffix = f"_{name}" if name else ""
    found: dict[str, Any] = {f"cases{suffix}": int(members.sum())}
    for prefix, values in dice.items():
        found |= with_interval(f"{prefix}dice{suffix}", values[members])
        if prefix != METHOD:  # paired, case by case
            found |= with_interval(f"{prefix}difference{suffix}", (dice[METHOD] - values)[members])
    return found


def summarize(
    cases: Sequence[CaseScores], prefixes: Sequence[str], subsets: Mapping[str, set[str]]
) -> tuple[list[dict], dict[str, Any], list[dict]]:
    """Score the method and the baselines over all cases.

    Args:
        cases: Labeled cases, at least one, and healthy slices.
        prefixes: Of the method and of each baseline.
        subsets: Name of each subset to the names of its cases, or of their scans.

    Returns:
        Rows of the case table, the summary, and rows of the curves over thresholds.
    """
    scored = np.array([case.row is not None for case in cases])
    rows = [dict(case.row) for case in cases if case.row is not None]
    labeled = np.array([row["lesion_pixels"] for row in rows])
    healthy_pixels = sum(case.healthy_pixels for case in cases) or math.nan
    summary: dict[str, Any] = {"healthy_slices": sum(case.healthy_slices for case in cases)}
    curves: list[dict] = []
    for prefix in prefixes:
        threshold, marked = masks_of(prefix, cases)
        counts = np.stack([case.counts[prefix] for case in cases])
        thresholds = thresholds_of(prefix)
        columns, scores, curve = summarize_score(marked[scored, :2], counts[scored, :2], labeled, thresholds)
        scores |= {"threshold": threshold, "false_positive_fraction": float(marked[:, 2].sum() / healthy_pixels)}
        for name in LESION_COLUMNS:
            if prefix + name in rows[0]:
                scores |= with_interval(name, np.array([row[prefix + name] for row in rows], float))
        summary |= {prefix + name: value for name, value in scores.items()}
        for name, values in columns.items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[prefix + name] = value
        curve = {"threshold": thresholds, **curve, "healthy_pixels_above": counts[:, 2].sum(axis=0)}
        score = prefix.removesuffix("_") or "anomaly_map"
        lines = zip(*(column.tolist() for column in curve.values()), strict=True)
        curves += [{"score": score, **dict(zip(curve, line, strict=True))} for line in lines]
    dice = {prefix: np.array([row[f"{prefix}dice"] for row in rows]) for prefix in prefixes}
    for group, members in _members(rows, subsets).items():
        summary |= group_means(dice, members, group)
    for name in ("ssim_healthy", "ssim_healthy_brain", "iterations"):
        summary[name] = mean([row[name] for row in rows])
    return rows, summary | without_lesion(rows), curves


def without_lesion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many cases have no lesion, and the means over them of what is marked there, all of it false."""
    healthy = [row for row in rows if row["lesion_pixels"] == 0]
    names = ("false_positive_ml", "false_positive_pixels", "false_positive_fraction")
    means = {f"{name}_without_lesion": mean([row[name] for row in healthy]) for name in names}
    return {"cases_without_lesion": len(healthy), **means}


def _no_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def write_tables(
    output_dir: Path, rows: Sequence[Mapping], summary: Mapping[str, Any], curves: Sequence[Mapping]
) -> None:
    """Write ``cases.csv``, ``curves.csv`` and ``summary.json``; what is undefined is empty there, or null."""
    for name, lines in (("cases.csv", rows), ("curves.csv", curves)):
        write_csv(output_dir / name, [*lines[0]], map(_no_nan, lines))
    write_json(output_dir / "summary.json", _no_nan(summary))


def number_of(value: Any) -> float:
    """A number of the tables, NaN where it is undefined."""
    return math.nan if value in (None, "") else float(value)


def shown(value: Any, digits: int = 3) -> str:
    """A number of the tables for people, "-" where it is undefined."""
    number = number_of(value)
    return "-" if math.isnan(number) else f"{number:.{digits}f}"


def interval(summary: Mapping[str, Any], name: str) -> str:
    """The 95 % interval of an entry of the summary, for people."""
    return " to ".join(shown(summary.get(f"{name}_ci_{end}")) for end in ("low", "high"))


def score_name(prefix: str, method: str) -> str:
    """The name of a score for people, by its prefix with or without "_" at the end."""
    return prefix.removesuffix("_").replace("_", " ") or method


def summary_table(summary: Mapping[str, Any], prefixes: Sequence[str]) -> Iterator[list[str]]:
    """The `SUMMARY_COLUMNS` for people: their titles, then a row for each score, its name first."""
    yield ["score", *SUMMARY_COLUMNS]
    for prefix in prefixes:
        numbers = (shown(summary.get(prefix + key)) for key in SUMMARY_COLUMNS.values())
        yield [score_name(prefix, str(summary["method"])), *numbers]


def healthy_words(summary: Mapping[str, Any]) -> str:
    """What is marked in the cases without lesion, as a sentence; empty where there is none."""
    number = int(summary.get("cases_without_lesion") or 0)
    if not number:
        return ""
    ml, pixels, fraction = (
        number_of(summary.get(f"false_positive_{name}_without_lesion")) for name in ("ml", "pixels", "fraction")
    )
    size = f"{pixels:.1f} pixels" if math.isnan(ml) else f"{ml:.2f} ml"
    cases = "1 case" if number == 1 else f"{number} cases"
    return f"{cases} without lesion: {size} marked in each on average, {fraction:.3%} of the brain, all of it false."


def _lesion_words(summary: Mapping[str, Any], prefixes: Sequence[str]) -> Iterator[str]:
    """What says something where there are lesions alone: the main numbers, a line for each score, and intervals."""
    for name, *numbers in summary_table(summary, prefixes):
        yield f"{name:26}" + "".join(f"{number:>12}" for number in numbers)
    yield '"best thr.": Dice of the one threshold that is best for the test labels, which is no result'
    mixed = math.isnan(summary["threshold"])
    threshold = "thresholds of volumes and of slices" if mixed else f"threshold {summary['threshold']:.4g}"
    yield f"{summary['cases']} cases, {summary['healthy_slices']} healthy slices, label-free {threshold}"
    for name, key in (("Dice", "dice"), ("Lesion-wise F1", "lesion_f1")):
        yield f"{name} {shown(summary[key])} (95 % interval {interval(summary, key)})"
    lesions, found, components, false = (summary[name] for name in LESION_COLUMNS[:4])
    yield f"In a case {found:.1f} of {lesions:.1f} lesions are found, {false:.1f} of {components:.1f} components false"
    for group in (key.removeprefix("cases_") for key in summary if key.startswith("cases_")):
        if (number := summary[f"cases_{group}"]) and (dice := f"dice_{group}") in summary:
            yield f"{group}: Dice {shown(summary[dice])} (95 % interval {interval(summary, dice)}), {number} cases"


def print_summary(summary: Mapping[str, Any], prefixes: Sequence[str], output_dir: Path) -> None:
    """Say what was found and where it lies."""
    if summary["cases"] > summary["cases_without_lesion"]:
        print("\n".join(_lesion_words(summary, prefixes)))
    if words := healthy_words(summary):
        print(words)
    for name in (*TABLES, "pictures"):
        if (output_dir / name).exists():
            print(f"  {output_dir / name}")
