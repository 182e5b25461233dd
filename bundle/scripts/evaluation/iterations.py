"""How the mask of one case shrinks from pass to pass, as a picture."""

from __future__ import annotations

import copy
import math
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..common.outputs import atomic, check_writable
from ..inference.inferer import IterMaskInferer
from ..method.refinement import Refinement
from .pictures import LABEL_COLOR, PRED_COLOR, brain_box, enlarge, gray, outline, tile, to_display
from .samples import Sample, processed_sample
from .summaries import STRIP_FILE


class IterationStrip:
    """Draws what the result would be after 0, 1, 2 ... passes, for the case that took the most passes.

    Of several such cases it takes the first by name. Nothing is drawn where no case took two passes.

    Args:
        inferer: The inferer of the evaluation, with its five outputs.
        network: What it runs.
        output_dir: Folder for ``iterations.png``.
        panels: At most so many passes are shown, the first and the last among them.
        enabled: Whether to draw at all.
    """

    def __init__(
        self, inferer: IterMaskInferer, network: Refinement, output_dir: str, panels: int = 8, enabled: bool = True
    ):
        self.inferer = copy.copy(inferer)
        self.inferer.progress = False
        self.network = network
        self.output_dir = check_writable(output_dir)
        self.panels = panels
        self.enabled = enabled
        self.order = (-1, "")  # passes, negative, and name of the case found; a single pass shrinks nothing
        self.found: tuple[Sample, Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """Look at every case of an evaluator."""
        if self.enabled:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def _look(self, engine: Engine) -> None:
        state: Any = engine.state
        for item, output in zip(state.batch, state.output, strict=True):
            sample = processed_sample(item, output)
            slices = sample.passes.flatten(1).amax(dim=1) * sample.label.flatten(1).any(dim=1)
            index = int(slices.argmax())
            order = (-int(slices[index]), sample.name)
            if order < self.order:
                self.order = order
                most = sample.select(torch.arange(len(slices)) == index)
                self.found = most, torch.cat([most.image, most.brain_mask.float()], dim=1)

    def draw(self) -> None:
        """Draw the case of all processes, on the first of them."""
        shares: Any = idist.all_gather({"order": self.order, "found": self.found})
        most = min(shares, key=lambda share: share["order"])
        if most["found"] is None or idist.get_rank() > 0:
            return
        passes = -most["order"][0]
        sample, inputs = most["found"]
        device = next(self.network.parameters()).device
        planes = {key: getattr(sample, key)[0, 0].numpy() for key in ("brain_mask", "label", "pred_mask", "image")}
        box = brain_box(planes)
        image, label, brain_mask = (planes[key][box] for key in ("image", "label", "brain_mask"))
        low, high = np.percentile(image[brain_mask > 0], [0.5, 99.5])
        drawn = outline(gray(image, low, high), label, LABEL_COLOR)

        def after(count: int) -> np.ndarray:
            self.inferer.options = {**self.inferer.options, "max_passes": count}
            return self.inferer(inputs.to(device), self.network)[0].cpu().numpy()

        refinements = passes - int(after(0)[-2].max())  # of the first iteration
        row = []
        for count in np.unique(np.linspace(0, refinements, min(self.panels, refinements + 1)).round().astype(int)):
            panel = outline(drawn, after(int(count))[0][box], PRED_COLOR)
            row.append((f"after {count} refinements", enlarge(to_display(panel), 400)))
        half = math.ceil(len(row) / 2) if len(row) > 4 else len(row)
        rows = [part for part in (row[:half], row[half:]) if part]
        title = f"{sample.name}: mask (red) and label (green), {passes} network passes"
        with atomic(self.output_dir / STRIP_FILE) as temporary:
            tile(rows, title).save(temporary)
