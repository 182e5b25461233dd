"""Pictures of single cases, drawn with NumPy and Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from ..data.morphology import box_of

LABEL_COLOR, PRED_COLOR = (80, 220, 100), (255, 90, 60)
CAPTION_HEIGHT, GAP = 16, 4


def to_display(plane: np.ndarray) -> np.ndarray:
    """Turn an RAS axial slice (H, W, ...) as radiologists look at it: front up, the patient's right on the left."""
    return np.swapaxes(plane[::-1, ::-1], 0, 1)


def gray(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Gray levels of a slice (H, W) as uint8 (H, W, 3): ``low`` is black and ``high`` white."""
    level = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
    return np.repeat((255 * level).astype(np.uint8)[..., None], 3, axis=-1)


def heat(plane: np.ndarray, high: float) -> np.ndarray:
    """Colors of a slice (H, W) of scores as uint8 (H, W, 3): 0 is black, ``high`` and above pale yellow."""
    return colormaps["inferno"](np.clip(plane / max(high, 1e-6), 0, 1), bytes=True)[..., :3]


def outline(colors: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Draw the inner border of a mask (H, W) onto colors (H, W, 3)."""
    mask = mask > 0
    return np.where((mask & ~binary_erosion(mask))[..., None], np.array(color, np.uint8), colors)


def enlarge(plane: np.ndarray, size: int) -> np.ndarray:
    """Repeat pixels by the whole factor that brings the longer side closest to ``size`` from below, at least 1."""
    factor = max(1, size // max(plane.shape[:2]))
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


def brain_box(planes: dict[str, np.ndarray], margin: int = 3) -> tuple[slice, slice]:
    """Rows and columns that hold the brain, the label and the mask, and a little more; all where these are empty."""
    shown = (planes["brain_mask"] > 0) | (planes["label"] > 0) | (planes["pred_mask"] > 0)
    rows, columns = box_of(shown if shown.any() else ~shown, margin)[-2:]
    return rows, columns


def tile(rows: Sequence[Sequence[tuple[str, np.ndarray]]], title: str) -> Image.Image:
    """Lay out panels of colors (H, W, 3) in rows, each with a caption above it, under a title."""
    heights = [max(panel.shape[0] for _, panel in row) for row in rows]
    width = max(sum(panel.shape[1] + GAP for _, panel in row) for row in rows) + GAP
    height = CAPTION_HEIGHT + sum(tallest + CAPTION_HEIGHT + GAP for tallest in heights)
    picture = Image.new("RGB", (width, height), (24, 24, 28))
    pen = ImageDraw.Draw(picture)
    pen.text((GAP, 2), title, fill=(255, 255, 255))
    top = CAPTION_HEIGHT
    for row, tallest in zip(rows, heights, strict=True):
        left = GAP
        for caption, panel in row:
            pen.text((left, top + 2), caption, fill=(200, 200, 200))
            picture.paste(Image.fromarray(np.ascontiguousarray(panel)), (left, top + CAPTION_HEIGHT))
            left += panel.shape[1] + GAP
        top += tallest + CAPTION_HEIGHT + GAP
    return picture


def case_picture(
    planes: dict[str, np.ndarray], modalities: Sequence[str], title: str, panel_size: int = 320
) -> Image.Image:
    """One slice of a case: image, reconstruction if there is one, anomaly map, and mask against label.

    Several modalities take a row each; the anomaly map and the masks belong to all and stand in the first. What lies
    far from the brain is cut off.

    Args:
        planes: ``image`` and perhaps ``reconstruction`` (M, H, W); ``anomaly_map``, ``pred_mask``, ``label`` and
            ``brain_mask`` (1, H, W).
        modalities: Names of the M modalities.
        title: Text above the panels.
        panel_size: Small panels are enlarged up to this many pixels.
    """
    box = brain_box(planes)
    planes = {name: plane[(..., *box)] for name, plane in planes.items()}
    brain = planes["brain_mask"][0] > 0
    rows = []
    for index, modality in enumerate(modalities):
        image = planes["image"][index]
        low, high = np.percentile(image[brain], [0.5, 99.5]) if brain.any() else (image.min(), image.max())
        row = [(modality, gray(image, low, high))]
        if "reconstruction" in planes:
            row.append(("reconstruction", gray(np.where(brain, planes["reconstruction"][index], low), low, high)))
        if index == 0:
            peak = float(planes["anomaly_map"].max())
            outlined = outline(gray(image, low, high), planes["label"][0], LABEL_COLOR)
            row += [
                (f"anomaly map, 0 to {peak:.3g}", heat(planes["anomaly_map"][0], peak)),
                ("mask (red), label (green)", outline(outlined, planes["pred_mask"][0], PRED_COLOR)),
            ]
        rows.append([(caption, enlarge(to_display(panel), panel_size)) for caption, panel in row])
    return tile(rows, title)
