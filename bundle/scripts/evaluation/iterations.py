"""How the mask of one case is refined from iteration to iteration, as a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.outputs import atomic
from ..inference.inferer import IterMaskInferer
from ..method.refinement import Refinement
from .pictures import LABEL_COLOR, PRED_COLOR, brain_box, enlarge, gray, outline, tile, to_display
from .samples import Sample, sample_name
from .summaries import SIZE_CLASSES, in_class

ITERATIONS_FILE = "iterations.png"
MOST_MASKS = 5


def typical_case(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The case to show: of those with a lesion of medium size that took more than one iteration (else of all with a
    lesion) the one whose Dice is nearest to the median; None where no case was iterated."""
    rows = [row for row in rows if row["lesion_pixels"] > 0 and row["iterations"] > 1]
    if not rows:
        return None
    medium = [row for row in rows if in_class(np.array(row["lesion_pixels_128"]), *SIZE_CLASSES["medium"])]
    middle = np.median([row["dice"] for row in rows])
    return min(medium or rows, key=lambda row: (abs(row["dice"] - middle), row["case"]))["case"]


def _loaded(scans: Sequence[Mapping], transform: Callable[[Any], Any], name: str) -> Iterator[Mapping]:
    for scan in scans:
        if "error" not in scan and name.startswith(str(scan["case"])):
            items = transform(dict(scan))
            yield from items if isinstance(items, list) else [items]


def draw_iterations(
    rows: Sequence[Mapping[str, Any]],
    scans: Sequence[Mapping],
    transform: Callable[[Any], Any],
    inferer: IterMaskInferer,
    network: Refinement,
    output_dir: str,
) -> None:
    """Segment a typical case again, ending after 0, 1, 2 ... iterations, and draw the slice of its largest lesion.

    Args:
        rows: Of the case table.
        scans: What was evaluated, before its transform.
        transform: Loads a scan as the evaluation does, to one item or a list of slices.
        inferer: The inferer of the evaluation.
        network: What it runs.
        output_dir: Folder for ``iterations.png``; nothing is drawn where no case took two iterations.
    """
    name = typical_case(rows)
    if name is None:
        return
    item = next(item for item in _loaded(scans, transform, name) if sample_name(item) == name)
    inputs = torch.as_tensor(item["image"])[None].to(next(network.parameters()).device)
    inferer = copy.copy(inferer)
    inferer.progress = False

    def after(count: int) -> Sample:
        inferer.options = {**inferer.options, "max_passes": count}
        return Sample.from_item({**item, "pred": inferer(inputs, network)[0]}, inferer.outputs)

    result = after(inferer.options["max_passes"])
    index = int(result.label.flatten(1).sum(dim=1).argmax())
    planes = {key: getattr(result, key)[index, 0].numpy() for key in ("image", "brain_mask", "label", "pred_mask")}
    box = brain_box(planes)
    planes = {key: plane[box] for key, plane in planes.items()}
    image = gray(planes["image"], *np.percentile(planes["image"][planes["brain_mask"]], [0.5, 99.5]))
    last = int(result.iterations[index]) - 1
    counts = np.unique(np.linspace(0, last, min(MOST_MASKS, last + 1)).round().astype(int))[:-1]
    masks = [
        (f"mask after iteration {count + 1}", after(int(count)).pred_mask[index, 0].numpy()[box]) for count in counts
    ]
    masks.append((f"result, after {last + 1} iterations", planes["pred_mask"]))
    panels = [("image", image), *((caption, outline(image, mask, PRED_COLOR)) for caption, mask in masks)]
    panels.append(("label", outline(image, planes["label"], LABEL_COLOR)))
    row = [(caption, enlarge(to_display(panel), 320)) for caption, panel in panels]
    rows_of_panels = [row] if len(row) <= 4 else [row[: -(-len(row) // 2)], row[-(-len(row) // 2) :]]
    with atomic(Path(output_dir) / ITERATIONS_FILE) as temporary:
        tile(rows_of_panels, f"{name}: how the mask is refined").save(temporary)
