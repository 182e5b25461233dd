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
from .pictures import LABEL_COLOR, PRED_COLOR, brain_box, enlarge, gray, outline, tile, to_display
from .samples import Sample, sample_name
from .summaries import SIZE_CLASSES, in_class

ITERATIONS_FILE = "iterations.png"
MOST_MASKS = 5


def typical_case(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the iterated case whose Dice is nearest to the median, of those with a lesion of medium size if any.

    None where no case took more than one iteration.
    """
    rows = [row for row in rows if row["lesion_pixels"] > 0 and row["iterations"] > 1]
    if not rows:
        return None
    middle = np.median([row["dice"] for row in rows])
    medium = [row for row in rows if in_class(np.array(row["lesion_pixels_128"]), *SIZE_CLASSES["medium"])]
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
    image, brain, label, mask = (plane[box] for plane in planes.values())
    shown = gray(image, *np.percentile(image[brain], [0.5, 99.5]))
    last = int(result.iterations[index])
    panels = [("image", shown)]
    for count in np.unique(np.linspace(1, last, min(MOST_MASKS, last)).round().astype(int))[:-1]:
        refined = after(int(count) - 1).pred_mask[index, 0].numpy()[box]
        panels.append((f"mask of iteration {count}", outline(shown, refined, PRED_COLOR)))
    panels.append((f"result, iteration {last}", outline(shown, mask, PRED_COLOR)))
    panels.append(("label", outline(shown, label, LABEL_COLOR)))
    panels = [(caption, enlarge(to_display(panel), 320)) for caption, panel in panels]
    half = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    with atomic(Path(output_dir) / ITERATIONS_FILE) as temporary:
        tile([row for row in (panels[:half], panels[half:]) if row], f"{name}: how the mask is refined").save(temporary)
