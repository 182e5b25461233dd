"""One self-contained HTML page of an evaluation: tables, charts, and every case with its picture."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..common.outputs import check_output, write_text
from ..data.lists import inside
from .summaries import TABLES, healthy_words, interval, number_of, score_name, shown, summary_table

METHOD = "anomaly_map"  # the method's name in curves.csv

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1340px; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .note { color: #566070; max-width: 70rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .25rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #8a94a3; }
tbody.case { border-bottom: 1px solid #ccd3dc; } .scroll { overflow-x: auto; }
#cases th { padding: 0; } #cases th button { all: unset; cursor: pointer; padding: .25rem .5rem; font-weight: 600; }
#cases th button:focus-visible { outline: 2px solid #1f6fb4; } th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td img { max-width: 100%; display: block; background: #18181c; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } .charts img { flex: 1 1 380px; max-width: 440px; }
"""

SCRIPT = """
const table = document.getElementById("cases");
const value = (body, column) => body.rows[0].cells[column].dataset.value;
table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
  const header = button.parentNode, direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "") : direction * (a - b || a.localeCompare(b));
  const bodies = [...table.tBodies].map(body => [value(body, column), body]);
  bodies.sort(([a], [b]) => compare(a, b)).forEach(([, body]) => table.append(body));
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}));
"""

CASE_COLUMNS = {
    "case": "case",
    "dice": "Dice",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "dice_per_image_best": "best Dice",
    "average_precision": "AP",
    "lesion_pixels_128": "lesion px (128)",
    "lesions_found": "lesions found",
    "lesions": "of",
    "false_components": "false components",
    "lesion_f1": "lesion F1",
    "false_positive_fraction": "FP fraction",
    "false_positive_ml": "FP ml",
    "false_positive_pixels": "FP px",
    "ssim_healthy_brain": "SSIM",
    "iterations": "iterations",
}


def read_curves(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Columns of ``curves.csv`` for each score; what is empty there is NaN."""
    rows: dict[str, list[dict]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row.pop("score"), []).append(row)
    return {
        score: {name: np.array([number_of(row.get(name)) for row in found]) for name in found[0]}
        for score, found in rows.items()
    }


def _image(content: bytes, kind: str, alt: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{escape(alt)}">'


def picture(path: Path, alt: str) -> str:
    """An image file as part of the page, JPEG."""
    buffer = io.BytesIO()
    with Image.open(path) as file:
        file.convert("RGB").save(buffer, "JPEG", quality=82)
    return _image(buffer.getvalue(), "jpeg", alt)


def summary_html(summary: Mapping[str, Any], scores: Sequence[str]) -> str:
    """The main numbers, a row for the method and each baseline."""
    prefixes = ["" if score == METHOD else f"{score}_" for score in scores]
    header, *rows = summary_table(summary, prefixes)
    cells = "".join(f"<th>{escape(title)}</th>" for title in (*header, "Dice, 95 %", "F1, 95 %"))
    lines = [f"<thead><tr>{cells}</tr></thead><tbody>"]
    for prefix, row in zip(prefixes, rows, strict=True):
        intervals = (interval(summary, prefix + key) for key in ("dice", "lesion_f1"))
        lines.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in (*row, *intervals)) + "</tr>")
    return f"<div class=scroll><table id=summary>{''.join(lines)}</tbody></table></div>"


@contextmanager
def _chart(x_label: str, y_label: str, alt: str, images: list[str]) -> Iterator[Axes]:
    """Axes to draw on, with a logarithmic x; their picture is added to ``images`` when the block ends."""
    with mpl.rc_context({"svg.hashsalt": "report", "font.size": 9}):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.add_subplot(xscale="log", xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        yield axes
        axes.legend(fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    images.append(_image(buffer.getvalue(), "svg+xml", alt))


def charts(curves: Mapping[str, Mapping[str, np.ndarray]], summary: Mapping[str, Any]) -> list[str]:
    """Scores over the threshold, and Dice over the part of the healthy brain that is marked, where these are known."""
    images: list[str] = []
    curve, method = curves[METHOD], str(summary["method"])
    if np.isnan(curve["dice"]).all():
        return images
    thresholds, above = curve["threshold"], curve["pixels_above"]
    drawn = (thresholds > 0) & (above > 0) & (above < 0.99 * above.max())  # from nearly everything to nothing
    drawn = drawn if drawn.any() else thresholds > 0
    with _chart("threshold of the anomaly map", "mean over cases", "scores over thresholds", images) as axes:
        for name, style in (("dice", "-"), ("sensitivity", "--"), ("precision", ":")):
            axes.plot(thresholds[drawn], curve[name][drawn], style, label=name)
        for caption, threshold, dice in (
            ("label-free", "threshold", "dice"),
            ("best single threshold", "best_threshold", "dice_best_threshold"),
        ):
            value = number_of(summary[dice])
            axes.plot(number_of(summary[threshold]), value, "o", label=f"{caption}: Dice {value:.3f}")
    fractions = {score: one["healthy_pixels_above"] for score, one in curves.items()}
    if fractions[METHOD].max() > 0:
        with _chart("part of the healthy brain marked", "mean Dice", "Dice over false positives", images) as axes:
            for score, healthy in fractions.items():
                name = f"map of {method}" if score == METHOD else score_name(score, method)
                axes.plot(healthy / max(healthy.max(), 1), curves[score]["dice"], label=name)
            marked = number_of(summary["false_positive_fraction"])
            axes.plot(marked, number_of(summary["dice"]), "o", label=f"mask of {method}")
            axes.set_xlim(1e-4, 1)
    return images


def _worst_first(row: Mapping[str, str]) -> tuple[float, float]:
    """Lowest Dice first; then the cases without lesion, the one with the largest marked part of the brain first."""
    return (math.inf if row["dice"] == "" else float(row["dice"])), -number_of(row["false_positive_fraction"])


def cases_html(rows: Sequence[Mapping[str, str]], folder: Path) -> str:
    """Every case with its numbers and picture, worst first; a click on a heading sorts."""
    baselines = [name for name in rows[0] if name.startswith("baseline_") and name.endswith("_dice")]
    columns = CASE_COLUMNS | {name: name.replace("_dice", " Dice").replace("_", " ") for name in baselines}
    columns = {name: title for name, title in columns.items() if any(row.get(name) not in (None, "") for row in rows)}
    header = "".join(f"<th scope=col><button>{escape(title)}</button></th>" for title in columns.values())
    bodies = []
    for row in sorted(rows, key=_worst_first):
        cells = ""
        for name in columns:
            text = row[name] if name == "case" or row[name].isdigit() else shown(row[name])
            cells += f'<td data-value="{escape(row[name])}">{escape(text)}</td>'
        body = f"<tr>{cells}</tr>"
        if row.get("picture"):
            image = picture(inside(folder, row["picture"], "cases.csv"), row["case"])
            body += f"<tr><td colspan={len(columns)}>{image}</td></tr>"
        bodies.append(f"<tbody class=case>{body}</tbody>")
    return f"<div class=scroll><table id=cases><thead><tr>{header}</tr></thead>{''.join(bodies)}</table></div>"


def _page(folder: Path) -> str:
    """The page of what an evaluation left; raises what the files make it raise."""
    summary = json.loads((folder / "summary.json").read_text())
    curves = read_curves(folder / "curves.csv")
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    heading = escape(f"{summary['method']}: evaluation of {int(summary['cases'])} cases")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{STYLE}</style></head><body>
<h1>{heading}</h1>
<p class=note>{escape(healthy_words(summary))}</p>
<p class=note>{int(summary["cases_small"])} small (under 200 px at 128 x 128), {int(summary["cases_medium"])} medium and
{int(summary["cases_large"])} large lesions (800 px and more); {int(summary["healthy_slices"])} healthy slices
({escape(str(summary["baseline_threshold_source"]))}). A baseline without a threshold of its own marks as much of the
healthy brain as the method does. A lesion is a connected part of the label of at least 10 mm3, and is found when a
marked voxel lies in it; a component of the mask is false when it touches no label. "best thr." is the Dice of the
single threshold that is best for the labels it is scored with, so it is no result.</p>
{summary_html(summary, list(curves))}
<h2>Thresholds and scores</h2><div class=charts>{"".join(charts(curves, summary))}</div>
<h2>Cases, worst first</h2><p class=note>Click a heading to sort, again to turn the order round. Pictures: image,
reconstruction if the model makes one, anomaly map, and mask (red) against label (green).</p>
{cases_html(rows, folder)}
<script>{SCRIPT}</script></body></html>
"""


def write_report(output_dir: str) -> Path:
    """Write ``report.html`` from what an evaluation left in ``output_dir``.

    The page holds its pictures, needs no network, and sorts its cases by any column.

    Raises:
        FileNotFoundError: When there is no evaluation.
        ValueError: When a file of it is not as `evaluate` writes it, or another page is in the way.
    """
    folder = Path(output_dir)
    missing = [name for name in TABLES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"No {missing[0]} in {folder}: run `evaluate` with this `output_dir` first.")
    file = folder / "report.html"
    check_output(file)
    try:
        page = _page(folder)
    except Exception as error:  # the files may be cut short, or another's
        raise ValueError(
            f"{folder} holds no whole evaluation ({type(error).__name__}: {str(error)[:200]}): run `evaluate` again."
        ) from None
    write_text(file, page)
    print(f"Report: {file}")
    return file
