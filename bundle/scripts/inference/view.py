"""One page for a segmented volume: scan and anomaly map in three planes, and a slider that tries thresholds.

Nilearn draws the planes (``nilearn.plotting.view_img``, requirements-view.txt); the page is one file that needs no
network. What would be marked at other thresholds is worked out of the anomaly map, see `levels_of`.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.utils import optional_import
from nibabel.spatialimages import SpatialImage
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from ..common.case_runner import raise_failed
from ..common.outputs import check_output, file_digest, is_unchanged, read_json, write_text
from ..common.paths import PRODUCT
from ..common.share import by_the_first
from ..data.morphology import box_of
from ..data.nifti import load_volume, voxel_ml
from ..data.scans import RESULTS
from ..method.former_volume import HIGH, LOW, UNLIKELY, Grid, hysteresis
from ..method.refinement import Refinement
from ..method.scores import hysteresis as hysteresis_of_slices
from .inferer import is_for_volumes

STEPS_PER_DECADE = 16  # of threshold scales
LARGEST_SCALE = 10.0  # and its inverse is the smallest
PIXEL_SIZE = 1.0  # mm, of the picture
MARGIN = 10.0  # mm around the brain
MASK, MAP = RESULTS
NOTES = {
    True: "At other settings the page works out of the anomaly map what inference would mark: nearly the same where "
    "voxels measure 1 mm, less so at thick slices.",
    False: "At other settings the page cuts the anomaly map of each slice at the thresholds of the model. That is near "
    "what inference would mark, but not the same: its passes start from the thresholds too.",
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
body { background: #000; color: #eee; font: 15px/1.45 system-ui, sans-serif; margin: 1rem; }
h1 { font-size: 1.2rem; } .choice { display: flex; gap: 1rem; align-items: center; margin: .6rem 0; }
.choice input { flex: 1; max-width: 40rem; } output { font-variant-numeric: tabular-nums; }
code { background: #333; padding: .1em .4em; } .note { color: #aaa; max-width: 60rem; font-size: .9rem; }
"""

SCRIPT = """
addEventListener("load", () => {
  const overlay = document.querySelector("img[id^=overlayImg]"), opacity = document.querySelector("input[id^=opacity]");
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = overlay.naturalWidth; canvas.height = overlay.naturalHeight;
  context.drawImage(overlay, 0, 0);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height), pixels = picture.data;
  const levels = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < levels.length; i++) levels[i] = pixels[4 * i + 3] ? VIEW.levels[pixels[4 * i + 1]] : 0;
  const slider = document.getElementById("threshold");
  overlay.addEventListener("load", () => opacity.dispatchEvent(new Event("input")));
  function show() {
    const step = VIEW.steps[slider.value];
    for (let i = 0; i < levels.length; i++) pixels[4 * i + 3] = levels[i] > slider.value ? 255 : 0;
    context.putImageData(picture, 0, 0);
    overlay.src = canvas.toDataURL();
    document.getElementById("marked").textContent = step.ml.toFixed(2) + " ml";
    document.getElementById("option").textContent = "--threshold_scale " + step.scale;
  }
  slider.addEventListener("input", show);
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


def scales_with(own: float) -> list[float]:
    """The threshold scales of the slider, rising; the one that a volume was segmented with is among them."""
    most = round(STEPS_PER_DECADE * math.log10(LARGEST_SCALE))
    steps = {float(f"{10 ** (step / STEPS_PER_DECADE):.3g}") for step in range(-most, most + 1)}
    return sorted(steps | {own})


def levels_of(
    anomaly_map: np.ndarray, spacing: Sequence[float], scales: Sequence[float], network: Refinement
) -> np.ndarray:
    """At how many of the threshold scales, from the smallest, each voxel would be marked.

    In whole volumes the logits of the working grid are recovered from the map, and thresholds, connected areas and
    the way back are those of `segment_volume`. In others each axial slice is cut at the thresholds of the model.

    Args:
        anomaly_map: As inference wrote it, (X, Y, Z), RAS.
        spacing: Of its voxels in mm.
        scales: Rising.
        network: The model that made it.

    Returns:
        Numbers (X, Y, Z), uint8.
    """
    values = torch.from_numpy(np.ascontiguousarray(anomaly_map, dtype=np.float32))
    whole = is_for_volumes(network, values > 0, torch.tensor(spacing))
    marked = _marked_in_volume(values, spacing, scales) if whole else _marked_in_slices(values, scales, network)
    levels = torch.zeros(values.shape, dtype=torch.uint8)
    still = torch.ones(values.shape, dtype=torch.bool)
    for mask in marked:
        still &= mask
        levels += still
    return levels.numpy()


def _marked_in_volume(probability: Tensor, spacing: Sequence[float], scales: Sequence[float]) -> list[Tensor]:
    inside = probability > 0
    score = torch.where(inside, torch.logit(probability.double(), eps=1e-7) - UNLIKELY, 0.0).float()
    grid = Grid(inside, spacing)
    brain = grid.resample(inside[None].float())[0] > 0.5
    box = tuple(grid.box)
    small = score[box][None]
    for matrix in grid.backward:
        small = torch.einsum("cxyz,ix->cyzi", small, torch.linalg.pinv(matrix))
    small = small[0] * brain
    marked = []
    for scale in scales:
        low, high = (limit - UNLIKELY + math.log(scale) for limit in (LOW, HIGH))
        kept = torch.nn.functional.max_pool3d(hysteresis(small, low, high)[None].float(), 3, 1, 1)
        mask = torch.zeros_like(inside)
        mask[box] = inside[box] & (grid.restore(kept)[0] > 0.5) & (score[box] > low)
        marked.append(mask)
    return marked


def _marked_in_slices(score: Tensor, scales: Sequence[float], network: Refinement) -> list[Tensor]:
    slices = score.movedim(2, 0)[:, None]
    low = float(network.threshold)
    high = float(getattr(network, "certain_threshold", low))
    return [hysteresis_of_slices(slices, low * scale, high * scale)[:, 0].movedim(0, 2) for scale in scales]


def page_of(volume: Segmented, network: Refinement) -> str:
    """The page of a volume.

    Raises:
        FileNotFoundError: When the scan is gone.
        ValueError: When the scan is in another space than its result.
    """
    scan_file = volume.record["inputs"][0][0]
    if not os.path.isfile(scan_file):
        raise FileNotFoundError(f"The scan {scan_file} is gone: put it back, or run `inference` again.")
    scan, anomaly_map, mask = (
        nib.as_closest_canonical(nib.squeeze_image(load_volume(path)))
        for path in (scan_file, volume.file(MAP), volume.file(MASK))
    )
    if scan.shape != anomaly_map.shape or not np.allclose(scan.affine, anomaly_map.affine, atol=1e-3):
        raise ValueError(f"{scan_file} is in another space than {volume.file(MAP)}: run `inference` again.")
    own = float(volume.record["threshold_scale"])
    scales, values = scales_with(own), np.asanyarray(anomaly_map.dataobj)
    spacing = nib.affines.voxel_sizes(anomaly_map.affine).tolist()
    levels = levels_of(values, spacing, scales, network)
    place, marked = scales.index(own), np.asanyarray(mask.dataobj) > 0
    if is_unchanged(volume.file(MASK)):  # by a person
        levels = np.where(marked, np.maximum(levels, place + 1), np.minimum(levels, place)).astype(np.uint8)
    ml = [float((levels > step).sum()) * voxel_ml(anomaly_map.affine) for step in range(len(scales))]
    steps = [{"scale": scale, "ml": round(value, 3)} for scale, value in zip(scales, ml, strict=True)]
    whole = is_for_volumes(network, torch.from_numpy(values > 0), torch.tensor(spacing))
    planes = _planes(scan, levels, values > 0, len(scales), volume.record["numbers"])
    return _html(volume, planes, steps, place, NOTES[whole])


def _planes(scan: SpatialImage, levels: np.ndarray, brain: np.ndarray, number: int, numbers: Mapping[str, Any]) -> str:
    """The page that nilearn makes of the scan under the levels, on voxels of one size around the brain."""
    plotting, found = optional_import("nilearn.plotting")
    colors, _ = optional_import("matplotlib.colors")
    corner, shape = _space_around(brain if brain.any() else np.ones(scan.shape, bool), scan.affine)
    affine = np.diag([PIXEL_SIZE, PIXEL_SIZE, PIXEL_SIZE, 1.0])
    affine[:3, 3] = corner
    there = np.linalg.inv(scan.affine) @ affine
    gray = scan.get_fdata(dtype=np.float32)
    low, high = np.percentile(gray[brain], [0.5, 99.5]) if brain.any() else (gray.min(), gray.max())
    gray = np.clip((gray - low) / max(high - low, 1e-6), 0, 1)
    images = [
        nib.Nifti1Image(ndimage.affine_transform(array, there[:3, :3], there[:3, 3], shape, order=order), affine)
        for array, order in ((gray, 1), (levels.astype(np.float32), 0))
    ]
    lesions = numbers.get("lesions") or []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future, and of empty maps
        view = plotting.view_img(
            images[1],
            bg_img=images[0],
            cut_coords=lesions[0]["center_mm"] if lesions else None,
            threshold=0.5,
            cmap=colors.ListedColormap([(1, green / 255, 0) for green in greens_of(number)]),
            symmetric_cmap=False,
            vmin=0,
            vmax=number,
            colorbar=False,
            opacity=0.7,
            title="",
            resampling_interpolation="nearest",
        )
        page = view.get_standalone()
    return page.replace('"flagValue": true', '"flagValue": false')  # a level says nothing to a reader


def greens_of(number: int) -> list[int]:
    """The green of the color of each level, from 0 to ``number``: no two have the same."""
    return [round(255 * level / number) for level in range(number + 1)]


def _space_around(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The corner in mm, and the shape in pixels, of a box with a margin around a brain."""
    spans = [(span.start, span.stop - 1) for span in box_of(brain)]
    corners = nib.affines.apply_affine(affine, np.array(np.meshgrid(*spans)).reshape(3, -1).T)
    first, last = corners.min(axis=0) - MARGIN, corners.max(axis=0) + MARGIN
    return first, tuple(int(n) for n in np.ceil((last - first) / PIXEL_SIZE) + 1)


def _html(volume: Segmented, planes: str, steps: Sequence[Mapping[str, float]], place: int, note: str) -> str:
    data = json.dumps({"steps": steps, "levels": {green: level for level, green in enumerate(greens_of(len(steps)))}})
    name, model = escape(volume.name), str(volume.record.get("model_sha256"))[:12]
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style>'
    choice = f"""<h1>{name}</h1>
<div class=choice><label for=threshold>Threshold: more</label>
<input type=range id=threshold min=0 max={len(steps) - 1} value={place}><span>less</span>
<output id=marked for=threshold></output><code id=option></code></div>
<p class=note>Yellow stays marked longest, red goes first. Inference wrote {steps[place]["ml"]:.2f} ml with
--threshold_scale {steps[place]["scale"]:g} (model {escape(model)}). {escape(note)} For research, not for diagnosis.</p>
"""
    script = f"<script>const VIEW = {data};{SCRIPT}</script>"
    page = re.sub("<link rel=.?icon[^>]*>", "", planes, count=1)  # it is on a network
    page = re.sub("<title>.*?</title>", lambda _: f"<title>{name}</title>", page, count=1)
    page = page.replace("<head>", f"<head>{head}", 1).replace("<body>", f"<body>{choice}", 1)
    return page.replace("</body>", f"{script}</body>", 1)


@by_the_first
def write_views(results_dir: str, network: Refinement, model_file: str, case: str | None = None) -> list[Path]:
    """Write a page beside the results of each volume, ``CASE_anomaly_view.html``.

    Args:
        results_dir: The ``output_dir`` of inference.
        network: The model that the volumes were segmented with.
        model_file: Its file.
        case: One of the volumes; None: all.

    Returns:
        The pages.

    Raises:
        FileNotFoundError: When there is no finished volume.
        ValueError: When nilearn is not installed.
        RuntimeError: When a scan failed, or its page was changed; the others have their pages then.
    """
    volumes = find_segmented(results_dir, case)
    if not all(optional_import(name)[1] for name in ("nilearn.plotting", "matplotlib.colors")):
        raise ValueError("`view` needs nilearn, which is not installed: run pip install -r requirements-view.txt.")
    pages, failed, digest = [], {}, file_digest(model_file)
    for volume in tqdm(volumes, desc="pages", unit="volume"):
        try:
            if volume.record.get("model_sha256") != digest:
                raise ValueError(f"{volume.name} was segmented with another model than {model_file}: set `model_file`.")
            check_output(volume.page)
            write_text(volume.page, page_of(volume, network))
        except (ValueError, OSError) as error:
            failed[volume.name] = str(error)
            continue
        pages.append(volume.page)
    if pages:
        print(f"Pages: {pages[0]}" + (f" and {len(pages) - 1} more" if len(pages) > 1 else ""))
    raise_failed(failed, len(volumes))
    return pages
