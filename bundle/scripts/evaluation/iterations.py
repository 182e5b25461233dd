"""How the mask of one case is refined from iteration to iteration, as a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.outputs import atomic
from ..inference.inferer import IterMaskInferer
from ..method.model import Model
from .pictures import LABEL_COLOR, PRED_COLOR, Panel, brain_box, draw
from .samples import Sample, sample_name
from .summaries import SIZE_CLASSES

ITERATIONS_FILE = "iterations.png"
MOST_MASKS = 5


def typical_case(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the iterated case whose Dice is nearest to the median, of those with a lesion of medium size if any.

    None where no case took more than one iteration.
    """
    rows = [row for row in rows if row["lesion_pixels"] > 0 and row["iterations"] > 1]
    if not rows:
        return None
    middle, (low, high) = np.median([row["dice"] for row in rows]), SIZE_CLASSES["medium"]
    medium = [row for row in rows if low <= row["lesion_pixels_128"] < high]
    return min(medium or rows, key=lambda row: (abs(row["dice"] - middle), row["case"]))["case"]


def _loaded(scans: Sequence[Mapping], transform: Callable[[Any], Any], name: str) -> Mapping:
    """The item of a case, of the scans that were evaluated; a transform gives one item or a list of slices."""
    found = (transform(dict(scan)) for scan in scans if "error" not in scan and name.startswith(str(scan["case"])))
    items = (item for one in found for item in (one if isinstance(one, list) else [one]))
    return next(item for item in items if sample_name(item) == name)


def draw_iterations(
    rows: Sequence[Mapping[str, Any]],
    scans: Sequence[Mapping],
    transform: Callable[[Any], Any],
    inferer: IterMaskInferer,
    network: Model,
    output_dir: str,
) -> None:
    """Segment a typical case of the table again, and draw the mask of each iteration where its lesion is largest.

    It goes to ``iterations.png``; nothing is drawn where no case took two iterations.
    """
    name = typical_case(rows)
    if name is None:
        return
    item = _loaded(scans, transform, name)
    inputs = torch.as_tensor(item["image"])[None].to(next(network.parameters()).device)
    inferer = copy.copy(inferer)
    inferer.progress = False

    def after(count: int) -> Sample:
        inferer.settings = {**inferer.settings, "max_iterations": count}
        return Sample.from_item({**item, "pred": inferer(inputs, network)[0]}, inferer.outputs)

    result = after(inferer.settings["max_iterations"])
    index = int(result.label.flatten(1).sum(dim=1).argmax())
    planes = {key: getattr(result, key)[index, 0].numpy() for key in ("image", "brain_mask", "label", "pred_mask")}
    box = brain_box(planes)
    image, _, label, mask = (plane[box] for plane in planes.values())
    last = int(result.iterations[index])
    panels = [Panel("image", image)]
    for count in np.unique(np.linspace(1, last, min(MOST_MASKS, last)).round().astype(int))[:-1]:
        refined = after(int(count) - 1).pred_mask[index, 0].numpy()[box]
        panels.append(Panel(f"mask of iteration {count}", image, {PRED_COLOR: refined}))
    panels.append(Panel(f"result, iteration {last}", image, {PRED_COLOR: mask}))
    panels.append(Panel("label", image, {LABEL_COLOR: label}))
    with atomic(Path(output_dir) / ITERATIONS_FILE) as temporary:
        draw([(f"{name}: how the mask is refined", panels)], temporary, width=2.4 * len(panels))
