"""Pictures of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..common.outputs import atomic
from ..data.morphology import box_of

LABEL_COLOR, PRED_COLOR = "lime", "red"
WIDTH = 10.0  # inches of 100 pixels
MARGIN = 3  # pixels around what is drawn of a case


class Panel(NamedTuple):
    """A slice to draw.

    Attributes:
        title: Text above it.
        plane: (H, W), in the order of RAS.
        outlines: Color to a mask (H, W) whose outline is drawn.
        levels: What is black and white; None: as in the first panel of the row.
        colors: Name of a color map.
    """

    title: str
    plane: ArrayLike
    outlines: Mapping[str, ArrayLike] = {}
    levels: tuple[float, float] | None = None
    colors: str = "gray"


def to_display(plane: np.ndarray) -> np.ndarray:
    """Turn an RAS axial slice (H, W, ...) as radiologists look at it: front up, the patient's right on the left."""
    return np.swapaxes(plane[::-1, ::-1], 0, 1)


def draw(rows: Sequence[tuple[str, Sequence[Panel]]], path: Path) -> None:
    """Draw rows of slices on black and save them.

    Args:
        rows: The heading of each row, and its panels.
        path: The picture; what is there is replaced.
    """
    widths = [[np.shape(panel.plane)[0] for panel in panels] for _, panels in rows]
    tallest = [max(np.shape(panel.plane)[1] for panel in panels) for _, panels in rows]
    rooms = [0.6 if heading else 0.3 for heading, _ in rows]  # inches above the slices
    heights = [room + WIDTH * high / sum(row) for room, high, row in zip(rooms, tallest, widths, strict=True)]
    figure = Figure(figsize=(WIDTH, sum(heights)), facecolor="black")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, room, height, row, (heading, panels) in zip(parts, rooms, heights, widths, rows, strict=True):
        part.set_facecolor("black")
        part.suptitle(heading, color="white", fontsize=11)
        place = {"left": 0.003, "right": 0.997, "bottom": 0, "top": 1 - room / height, "wspace": 0.02}
        first = np.percentile(np.asarray(panels[0].plane), (0, 99.8))
        grid = part.subplots(1, len(row), squeeze=False, width_ratios=row, gridspec_kw=place)[0]
        for axes, panel in zip(grid, panels, strict=True):
            low, high = panel.levels or first
            axes.imshow(to_display(np.asarray(panel.plane)), cmap=panel.colors, vmin=low, vmax=high)
            axes.set_autoscale_on(False)
            for color, mask in panel.outlines.items():
                shown = np.pad(to_display(np.asarray(mask)) > 0, 1)
                if shown.any():
                    places = (np.arange(-1, size - 1) for size in shown.shape[::-1])
                    axes.contour(*places, shown, [0.5], colors=color, linewidths=1)
            axes.set_title(panel.title, color="white", fontsize=9)
            axes.axis("off")
    figure.savefig(path, dpi=100, facecolor="black")


def draw_case(planes: Mapping[str, np.ndarray], modalities: Sequence[str], title: str, path: Path) -> None:
    """Draw one slice of a case: image, reconstruction if there is one, anomaly map, and mask against label.

    Each modality takes a row. What lies far from the brain is cut off.

    Args:
        planes: ``image`` and perhaps ``reconstruction`` (M, H, W); ``anomaly_map``, ``pred_mask``, ``label`` and
            ``brain_mask`` (1, H, W).
        modalities: Names of the M modalities.
        title: Text above the panels.
        path: The picture.
    """
    shown = (planes["brain_mask"] > 0) | (planes["label"] > 0) | (planes["pred_mask"] > 0)
    rows, columns = box_of(shown if shown.any() else ~shown, MARGIN)[-2:]
    planes = {name: plane[..., rows, columns] for name, plane in planes.items()}
    brain, score = planes["brain_mask"][0] > 0, planes["anomaly_map"][0]
    peak = float(score.max())
    outlines = {LABEL_COLOR: planes["label"][0], PRED_COLOR: planes["pred_mask"][0]}
    drawn = []
    for index, modality in enumerate(modalities):
        image = planes["image"][index]
        panels = [Panel(modality, image)]
        if "reconstruction" in planes:
            shown = np.where(brain, planes["reconstruction"][index], image.min())
            panels.append(Panel("reconstruction", shown))
        panels.append(Panel(f"anomaly map, 0 to {peak:.3g}", score, levels=(0, peak), colors="inferno"))
        panels.append(Panel("mask (red), label (green)", image, outlines))
        drawn.append(("" if index else title, panels))
    with atomic(path) as temporary:
        draw(drawn, temporary)
