"""One self-contained HTML page of an evaluation: tables, charts, and every case with its picture."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.outputs import check_output, write_text
from ..common.share import by_the_first
from ..data.lists import inside
from .charts import Line, Mark, chart
from .summaries import STRIP_FILE, SUMMARY_COLUMNS, healthy_words

METHOD = "anomaly_map"  # the method's name in curves.csv

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1340px; padding: 0 1rem; color: #1c2430;
  background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #8a94a3; }
tbody.case { border-bottom: 1px solid #ccd3dc; } .scroll { overflow-x: auto; }
#cases th { padding: 0; } #cases th button { all: unset; cursor: pointer; padding: .25rem .6rem; font-weight: 600; }
#cases th button:focus-visible { outline: 2px solid #1f6fb4; } th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td img, .strip img { max-width: 100%; display: block; background: #18181c; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 520px; max-width: 660px; }
svg { width: 100%; height: auto; font-size: 12px; } svg polyline { stroke-width: 1.8; } svg text { fill: #1c2430; }
svg .grid { stroke: #dfe4ea; } .strip img { max-height: 44rem; width: auto; }
.legend span { margin-right: 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
.note { color: #566070; max-width: 70rem; }
"""

SCRIPT = """
const table = document.getElementById("cases");
const value = (body, column) => body.rows[0].cells[column].dataset.value;
function compare(first, second) {
  if (first === "" || second === "") return (first === "") - (second === "");
  const difference = Number(first) - Number(second);
  return Number.isNaN(difference) ? first.localeCompare(second) : difference;
}
function sortBy(header, column) {
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const sign = (a, b) => a === "" || b === "" ? 1 : direction;
  const bodies = [...table.tBodies];
  bodies.sort((a, b) => sign(value(a, column), value(b, column)) * compare(value(a, column), value(b, column)));
  bodies.forEach(body => table.append(body));
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}
table.querySelectorAll("th").forEach((header, column) =>
  header.firstElementChild.addEventListener("click", () => sortBy(header, column)));
"""

CASE_COLUMNS = {
    "case": "case",
    "dice": "Dice",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "dice_per_image_best": "best Dice",
    "average_precision": "AP",
    "lesion_pixels_128": "lesion px (128)",
    "false_positive_fraction": "FP fraction",
    "false_positive_ml": "FP ml",
    "false_positive_pixels": "FP px",
    "ssim_healthy_brain": "SSIM",
    "network_passes": "passes",
}


def _number(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


def _shown(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def read_curves(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Columns of ``curves.csv`` for each score; what is empty there is NaN."""
    rows: dict[str, list[dict]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row.pop("score"), []).append(row)
    return {
        score: {name: np.array([_number(row.get(name)) for row in found]) for name in found[0]}
        for score, found in rows.items()
    }


def embedded(path: Path, longest: int = 1400) -> str:
    """An image file as a data URI, JPEG, at most ``longest`` pixels wide."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.thumbnail((longest, longest))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def summary_html(summary: Mapping[str, object], scores: Sequence[str]) -> str:
    """The main numbers, a row for the method and each baseline."""
    header = "".join(f"<th>{escape(title)}</th>" for title in SUMMARY_COLUMNS)
    rows = []
    for score in scores:
        prefix = "" if score == METHOD else f"{score}_"
        name = "IterMask" if score == METHOD else score.replace("_", " ")
        cells = "".join(f"<td>{_shown(_number(summary.get(prefix + key)))}</td>" for key in SUMMARY_COLUMNS.values())
        low, high = (_shown(_number(summary.get(f"{prefix}dice_ci_{end}"))) for end in ("low", "high"))
        rows.append(f"<tr><td>{escape(name)}</td>{cells}<td>{low} to {high}</td></tr>")
    head = f"<tr><th>score</th>{header}<th>Dice, 95 % interval</th></tr>"
    return f"<div class=scroll><table id=summary><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def shown_range(curve: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """The positive thresholds between which the marked area goes from nearly everything to nothing."""
    thresholds, above = curve["threshold"], curve["pixels_above"]
    shown = thresholds[(thresholds > 0) & (above < 0.99 * above.max()) & (above > 0)]
    return (float(shown[0]), float(shown[-1])) if len(shown) > 1 else (1e-3, 10.0)


def threshold_chart(curve: Mapping[str, np.ndarray], summary: Mapping[str, object]) -> str:
    """Dice, sensitivity and precision over the thresholds of the anomaly map, with the label-free threshold marked."""
    names = ("dice", "sensitivity", "precision")
    if np.isnan(curve["dice"]).all():
        return ""
    lines = [Line(name, curve["threshold"], np.nan_to_num(curve[name]), dashed=name != "dice") for name in names]
    marks = []
    for caption, suffix, color in (("upper bound", "_upper_bound", 3), ("label-free", "", 4)):
        dice, threshold = (_number(summary[name + suffix]) for name in ("dice", "threshold"))
        if not math.isnan(dice) and not math.isnan(threshold):
            marks.append(Mark(f"{caption}: Dice {_shown(dice)}", threshold, dice, color, below=suffix == ""))
    return chart(lines, "threshold of the anomaly map", "mean over cases", shown_range(curve), (0, 1), True, marks)


def false_positive_chart(curves: Mapping[str, Mapping[str, np.ndarray]], summary: Mapping[str, object]) -> str:
    """Dice of every score over the part of the healthy brain that is marked: where all can be compared."""
    lines, marks = [], []
    for index, (score, curve) in enumerate(curves.items()):
        prefix = "" if score == METHOD else f"{score}_"
        healthy = curve["healthy_pixels_above"]
        fraction = healthy / max(healthy.max(), 1)
        shown = (fraction >= 1e-4) & ~np.isnan(curve["dice"])
        name = "IterMask's anomaly map" if score == METHOD else score.replace("_", " ")
        lines.append(Line(name, fraction[shown], np.nan_to_num(curve["dice"][shown])))
        dice, marked = (_number(summary.get(prefix + key)) for key in ("dice", "false_positive_fraction"))
        if score == METHOD and not math.isnan(dice) and marked > 0:
            marks.append(Mark("label-free mask", marked, dice, index))
    if not any(len(line.x) for line in lines):
        return ""
    return chart(lines, "part of the healthy brain marked", "mean Dice", (1e-4, 1.0), (0, 1), True, marks)


def score_histogram(curve: Mapping[str, np.ndarray], bins: int = 60) -> str:
    """How the scores of healthy and of lesion pixels are distributed, over the shown thresholds."""
    low, high = shown_range(curve)
    edges = np.geomspace(low, high, bins + 1)
    lesion = curve["lesion_pixels_above"]
    healthy = curve["healthy_pixels_above"]
    name = "healthy slices"
    if healthy.max() == 0:
        healthy, name = curve["pixels_above"] - lesion, "brain outside the lesion"
    at = np.searchsorted(curve["threshold"], edges).clip(max=len(lesion) - 1)
    centers = np.sqrt(edges[1:] * edges[:-1])
    lines = [
        Line(label, centers, -np.diff(above[at]) / max(above.max(), 1), filled=True)
        for label, above in ((name, healthy), ("lesion", lesion))
        if above.max() > 0 or label == name
    ]
    highest = max(1e-3, *(float(line.y.max()) for line in lines))
    return chart(lines, "anomaly score", "part of the pixels", (low, high), (0, 1.05 * highest), True)


def _worst_first(row: Mapping[str, str]) -> tuple[float, float]:
    """Lowest Dice first; then the cases without lesion, the one with the largest marked part of the brain first."""
    return (math.inf if row["dice"] == "" else float(row["dice"])), -_number(row["false_positive_fraction"])


def cases_html(rows: Sequence[Mapping[str, str]], folder: Path) -> str:
    """Every case with its numbers and picture, worst first; a click on a heading sorts."""
    baselines = [name for name in rows[0] if name.startswith("baseline_") and name.endswith("_dice")]
    columns = CASE_COLUMNS | {name: f"{name.removesuffix('_dice').replace('_', ' ')} Dice" for name in baselines}
    columns = {name: title for name, title in columns.items() if any(row.get(name) not in (None, "") for row in rows)}
    header = "".join(f"<th scope=col><button>{escape(title)}</button></th>" for title in columns.values())
    bodies = []
    for row in sorted(rows, key=_worst_first):
        cells = []
        for name in columns:
            digits = 0 if name in ("lesion_pixels_128", "false_positive_pixels", "network_passes") else 3
            shown = row[name] if name == "case" else _shown(_number(row[name]), digits)
            cells.append(f'<td data-value="{escape(row[name])}">{escape(shown)}</td>')
        body = f"<tr>{''.join(cells)}</tr>"
        if row.get("picture"):
            source = embedded(inside(folder, row["picture"], "cases.csv"))
            body += f'<tr><td colspan={len(columns)}><img src="{source}" alt="{escape(row["case"])}"></td></tr>'
        bodies.append(f"<tbody class=case>{body}</tbody>")
    return f"<div class=scroll><table id=cases><thead><tr>{header}</tr></thead>{''.join(bodies)}</table></div>"


def _page(folder: Path) -> str:
    """The page of what an evaluation left; raises what the files make it raise."""
    summary = json.loads((folder / "summary.json").read_text())
    curves = read_curves(folder / "curves.csv")
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    iterations = ""
    if (folder / STRIP_FILE).is_file():
        source = embedded(folder / STRIP_FILE, 2400)
        iterations = f'<h2>The iterations of one case</h2><div class=strip><img src="{source}" alt="iterations"></div>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation of {int(summary["cases"])} cases</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style></head><body>
<h1>Evaluation of {int(summary["cases"])} cases</h1>
<p class=note>{escape(healthy_words(summary))}</p>
<p class=note>{int(summary["cases_small"])} small (under 200 px at 128 x 128), {int(summary["cases_medium"])} medium and
{int(summary["cases_large"])} large lesions (800 px and more); {int(summary["healthy_slices"])} healthy slices
({escape(str(summary["baseline_threshold_source"]))}). The baselines mark as much of the healthy brain as IterMask does.
The upper bound chooses its threshold on the labels it is scored with, so it is no result; it is one threshold of the
anomaly map, and can lie below the Dice of masks that two thresholds make.</p>
{summary_html(summary, list(curves))}
<h2>Thresholds and scores</h2><div class=charts>
{threshold_chart(curves[METHOD], summary)}{false_positive_chart(curves, summary)}{score_histogram(curves[METHOD])}</div>
{iterations}
<h2>Cases, worst first</h2><p class=note>Click a heading to sort, again to turn the order round. Pictures: image,
high-frequency image, reconstruction, anomaly map, and mask (red) against label (green).</p>
{cases_html(rows, folder)}
<script>{SCRIPT}</script></body></html>
"""


@by_the_first
def write_report(output_dir: str) -> Path:
    """Write ``report.html`` from what an evaluation left in ``output_dir``.

    The page holds its pictures, needs no network, and sorts its cases by any column.

    Args:
        output_dir: Folder with ``summary.json``, ``cases.csv``, ``curves.csv`` and ``pictures/``.

    Returns:
        The page.

    Raises:
        FileNotFoundError: When there is no evaluation.
        ValueError: When a file of it is not as `evaluate` writes it, or a page is in the way that this did not write or
            that was changed since.
    """
    folder = Path(output_dir)
    missing = [name for name in ("summary.json", "cases.csv", "curves.csv") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"No {missing[0]} in {folder}: run `evaluate` with this `output_dir` first.")
    check_output(folder / "report.html")
    try:
        page = _page(folder)
    except Exception as error:  # the files may be cut short, or another's
        raise ValueError(
            f"{folder} holds no whole evaluation ({type(error).__name__}: {str(error)[:200]}): run `evaluate` again."
        ) from None
    write_text(folder / "report.html", page)
    print(f"Report: {folder / 'report.html'}")
    return folder / "report.html"
