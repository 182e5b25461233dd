"""One page for a segmented scan: the scan and its anomaly map in three planes, and a slider for the map's threshold.

Nilearn draws the planes (``nilearn.plotting.view_img``, requirements-view.txt). The page is one file and needs no
network. It shows where the anomaly map exceeds a threshold, and counts the milliliters of that.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils import optional_import
from nibabel.spatialimages import SpatialImage
from scipy import ndimage
from tqdm import tqdm

from ..common.case_runner import raise_failed
from ..common.outputs import check_output, read_json, write_text
from ..common.paths import PRODUCT
from ..data.morphology import box_of, largest_component
from ..data.nifti import load_volume, voxel_ml
from ..data.scans import RESULTS

STEPS = 60  # of the slider
PIXEL_SIZE = 1.0  # mm, of the picture
MARGIN = 10.0  # mm around the brain
OPACITY = 0.7
MASK, MAP = RESULTS
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
body { background: #000; color: #eee; font: 15px/1.45 system-ui, sans-serif; margin: 1rem; }
h1 { font-size: 1.2rem; } .choice { display: flex; gap: 1rem; align-items: center; margin: .6rem 0; }
.choice input { flex: 1; max-width: 40rem; } output { font-variant-numeric: tabular-nums; }
.note { color: #aaa; max-width: 60rem; font-size: .9rem; }
"""

# Nilearn's viewer is VIEW.viewer. A voxel's green says its level: at how many steps of the slider it is shown.
SCRIPT = """
addEventListener("load", () => {
  const overlay = document.querySelector("img[id^=overlayImg]"), opacity = document.querySelector("input[id^=opacity]");
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = overlay.naturalWidth; canvas.height = overlay.naturalHeight;
  context.drawImage(overlay, 0, 0);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height), pixels = picture.data;
  const levels = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < levels.length; i++) levels[i] = pixels[4 * i + 3] ? VIEW.levels[pixels[4 * i + 1]] : 0;
  const slider = document.getElementById("threshold"), planes = VIEW.viewer.canvas;
  opacity.value = 100 * VIEW.opacity;
  overlay.addEventListener("load", () => opacity.dispatchEvent(new Event("input")));
  function show() {
    const step = VIEW.steps[slider.value];
    for (let i = 0; i < levels.length; i++) pixels[4 * i + 3] = levels[i] > slider.value ? 255 : 0;
    context.putImageData(picture, 0, 0);
    overlay.src = canvas.toDataURL();
    document.getElementById("shown").textContent = step.ml.toFixed(2) + " ml above " + +step.threshold.toPrecision(3);
  }
  let axis = "Z";  // across the plane under the pointer
  function step(number) {
    const { numSlice, nbSlice } = VIEW.viewer;
    numSlice[axis] = Math.min(Math.max(numSlice[axis] + number, 0), nbSlice[axis] - 1);
    VIEW.viewer.drawAll();
  }
  planes.addEventListener("pointermove", event => {
    const { widthCanvas } = VIEW.viewer, place = event.clientX - planes.getBoundingClientRect().left;
    axis = place < widthCanvas.X ? "X" : place < widthCanvas.X + widthCanvas.Y ? "Y" : "Z";
  });
  planes.addEventListener("wheel", event => { step(-Math.sign(event.deltaY)); event.preventDefault(); });
  addEventListener("keydown", event => {
    const number = { PageUp: 1, PageDown: -1 }[event.key];
    if (number) { step(number); event.preventDefault(); }
  });
  slider.addEventListener("input", show);
  const brightness = document.getElementById("brightness");
  brightness.addEventListener("input", () => planes.style.filter = `brightness(${brightness.value}%)`);
  show();
});
"""


class Segmented(NamedTuple):
    """A scan that inference has finished."""

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.record["case"])

    def file(self, result: str) -> Path:
        """A result, such as "anomaly_map"."""
        return self.folder / self.record["results"][result]

    @property
    def page(self) -> Path:
        return self.folder / self.file(MASK).name.replace("_mask.nii.gz", "_view.html")


def find_segmented(results_dir: str | os.PathLike, case: str | None = None) -> list[Segmented]:
    """The scans of a folder of results, by the records that inference left beside them.

    Args:
        results_dir: The ``output_dir`` of inference, in either layout.
        case: One of them; None: all.

    Raises:
        FileNotFoundError: When there is no such folder, or no such scan in it.
    """
    folder = Path(results_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}: set `results_dir` to the `output_dir` of inference.")
    records = [Segmented(path.parent, read_json(path)) for path in sorted(folder.rglob("*_record.json"))]
    ours = [scan for scan in records if scan.record.get("product") == PRODUCT and "results" in scan.record]
    found = [scan for scan in ours if case in (None, scan.name) and scan.file(MASK).is_file()]
    if not found:
        named = "finished scan" if case is None else f"finished scan {case}"
        raise FileNotFoundError(f"No {named} in {folder}: run `inference` with this `output_dir` first.")
    return found


def thresholds_of(anomaly_map: np.ndarray, mask: np.ndarray) -> tuple[list[float], int]:
    """Rising thresholds of a map for the slider, and the place of the one from which the mask begins.

    Args:
        anomaly_map: As inference wrote it (X, Y, Z).
        mask: What inference marked (X, Y, Z), bool.
    """
    positive = anomaly_map[anomaly_map > 0]
    if not positive.size:
        return [0.0], 0
    highest = float(positive.max())
    start = float(np.nextafter(np.quantile(anomaly_map[mask], 0.02), 0)) if mask.any() else highest
    thresholds = sorted({*np.linspace(0, highest, STEPS, endpoint=False)[1:].tolist(), start})
    return thresholds, thresholds.index(start)


def page_of(scan: Segmented) -> str:
    """The page of a scan.

    Raises:
        FileNotFoundError: When the scan is gone.
        ValueError: When the scan is in another space than its result.
    """
    scan_file = scan.record["inputs"][0][0]
    if not os.path.isfile(scan_file):
        raise FileNotFoundError(f"The scan {scan_file} is gone: put it back, or run `inference` again.")
    image, anomaly_map, mask = (
        nib.as_closest_canonical(nib.squeeze_image(load_volume(path)))
        for path in (scan_file, scan.file(MAP), scan.file(MASK))
    )
    if image.shape != anomaly_map.shape or not np.allclose(image.affine, anomaly_map.affine, atol=1e-3):
        raise ValueError(f"{scan_file} is in another space than {scan.file(MAP)}: run `inference` again.")
    values, marked = np.asanyarray(anomaly_map.dataobj), np.asanyarray(mask.dataobj) > 0
    thresholds, start = thresholds_of(values, marked)
    levels = np.searchsorted(thresholds, values, side="left").astype(np.uint8)
    unit = voxel_ml(anomaly_map.affine)
    shown = [float(np.count_nonzero(values > threshold)) * unit for threshold in thresholds]
    planes = _planes(image, levels, values > 0, len(thresholds), _middle_of_largest(marked, anomaly_map.affine))
    data = {
        "steps": [{"threshold": t, "ml": round(ml, 3)} for t, ml in zip(thresholds, shown, strict=True)],
        "levels": {green: level for level, green in enumerate(greens_of(len(thresholds)))},
        "opacity": OPACITY,
    }
    return _html(scan, planes, data, start, np.count_nonzero(marked) * unit)


def _middle_of_largest(marked: np.ndarray, affine: np.ndarray) -> list[float] | None:
    """The place (mm) that is deepest within the largest lesion; None where nothing is marked."""
    if not marked.any():
        return None
    largest = largest_component(marked, connectivity=3)
    box = box_of(largest)
    depth = ndimage.distance_transform_edt(np.pad(largest[box], 1))[1:-1, 1:-1, 1:-1]
    place = np.array(np.unravel_index(depth.argmax(), depth.shape)) + [span.start for span in box]
    return nib.affines.apply_affine(affine, place).tolist()


def _planes(
    scan: SpatialImage, levels: np.ndarray, brain: np.ndarray, number: int, place: Sequence[float] | None
) -> str:
    """The page that nilearn makes of the scan under the levels, on voxels of one size around the brain."""
    plotting, _ = optional_import("nilearn.plotting")
    image, _ = optional_import("nilearn.image")
    colors, _ = optional_import("matplotlib.colors")
    brain = brain if brain.any() else np.ones(scan.shape, bool)
    gray = scan.get_fdata(dtype=np.float32)
    low, high = np.percentile(gray[brain], [0.5, 99.5])
    gray = np.clip((gray - low) / max(high - low, 1e-6), 0, 1)
    box = box_of(brain, margin=round(MARGIN / min(scan.header.get_zooms()[:3])))
    under, over = (nib.Nifti1Image(array.astype(np.float32), scan.affine).slicer[box] for array in (gray, levels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future, and of empty maps
        view = plotting.view_img(
            over,
            bg_img=image.resample_img(under, np.diag([PIXEL_SIZE] * 3), interpolation="linear"),
            cut_coords=place,
            threshold=0.5,
            cmap=colors.ListedColormap([(1, green / 255, 0) for green in greens_of(number)]),
            symmetric_cmap=False,
            vmin=0,
            vmax=number,
            colorbar=False,
            opacity=OPACITY,
            title="",
            resampling_interpolation="nearest",
        )
        page = view.get_standalone()
    return page.replace('"flagValue": true', '"flagValue": false')  # a level says nothing to a reader


def greens_of(number: int) -> list[int]:
    """The green of the color of each level, from 0 to ``number``: no two have the same."""
    return [round(255 * level / number) for level in range(number + 1)]


def _html(scan: Segmented, planes: str, data: dict[str, Any], start: int, marked_ml: float) -> str:
    name = escape(scan.name)
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
    choice = f"""<h1>{name}</h1>
<div class=choice><label for=threshold>Threshold of the anomaly map: low (shows more)</label>
<input type=range id=threshold min=0 max={len(data["steps"]) - 1} value={start}><span>high (shows less)</span>
<output id=shown for=threshold></output></div>
<div class=choice><label for=brightness>Brightness</label>
<input type=range id=brightness min=50 max=300 value=100></div>
<p class=note>Red is just above the lowest threshold, yellow is the strongest anomaly. Click to move the cross. The
wheel, or the keys page up and page down, go through the slices of the plane under the pointer. The mask that
inference wrote has {marked_ml:.2f} ml: it also leaves out areas that are nowhere certain. <code>run inference</code>
with another <code>--threshold_scale</code> changes it. For research, not for diagnosis.</p>
"""
    page = re.sub("<link rel=.?icon[^>]*>", "", planes, count=1)  # it is on a network
    page = re.sub("<title>.*?</title>", lambda _: f"<title>{name}</title>", page, count=1)
    page = page.replace("<head>", f"<head>{head}<script>const VIEW = {json.dumps(data)};</script>", 1)
    page = page.replace("brain = brainsprite(", "brain = VIEW.viewer = brainsprite(", 1)
    page = page.replace("<body>", f"<body>{choice}", 1)
    return page.replace("</body>", f"<script>{SCRIPT}</script></body>", 1)


def write_views(results_dir: str, case: str | None = None) -> list[Path]:
    """Write a page beside the results of each scan, ``CASE_anomaly_view.html``.

    Args:
        results_dir: The ``output_dir`` of inference.
        case: One of the scans; None: all.

    Returns:
        The pages.

    Raises:
        FileNotFoundError: When there is no finished scan.
        ValueError: When nilearn is not installed.
        RuntimeError: When a scan failed, or its page was changed; the others have their pages then.
    """
    scans = find_segmented(results_dir, case)
    if not all(optional_import(name)[1] for name in ("nilearn.plotting", "matplotlib.colors")):
        raise ValueError("`view` needs nilearn, which is not installed: run pip install -r requirements-view.txt.")
    pages, failed = [], {}
    for scan in tqdm(scans, desc="pages", unit="scan"):
        try:
            check_output(scan.page)
            write_text(scan.page, page_of(scan))
            pages.append(scan.page)
        except (ValueError, OSError) as error:
            failed[scan.name] = str(error)
    if pages:
        print(f"Pages: {pages[0]}" + (f" and {len(pages) - 1} more" if len(pages) > 1 else ""))
    raise_failed(failed, len(scans))
    return pages
