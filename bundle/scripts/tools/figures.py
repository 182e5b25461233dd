"""Draw the figures of README: ``python bundle/scripts/tools/figures.py``, after ``demo.py --train``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.model_file import load_model  # noqa: E402
from scripts.data.nifti import load_volume  # noqa: E402
from scripts.data.transforms import scale_brain_intensity  # noqa: E402
from scripts.method.itermask import hide, iteration_noise  # noqa: E402
from scripts.method.volume import VolumeResult, segment_volume  # noqa: E402
from scripts.tools.demo import make_scan  # noqa: E402

Panel = tuple[str, Tensor, Tensor | None]  # title, slice (X, Y), mask to draw over it
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis across each
LEVELS = {"probability of lesion": (0, 1), "squared error": (0, 9)}  # black and white, where not those of the scan


def read(path: Path) -> Tensor:
    """The voxels of a volume, (1, X, Y, Z) float32."""
    return torch.from_numpy(np.asarray(load_volume(path).dataobj, dtype=np.float32))[None]


def draw(rows: Sequence[tuple[str, Sequence[Panel]]], path: Path) -> None:
    """Draw rows of slices on black, each with its title, and save them as a JPEG 1,000 pixels wide."""
    from matplotlib import pyplot

    sizes = [[slice_.shape for _, slice_, _ in panels] for _, panels in rows]
    widths = [[width for width, _ in row] for row in sizes]
    heights = [0.6 + 10 * max(height for _, height in row) / sum(width for width, _ in row) for row in sizes]  # inches
    figure = pyplot.figure(figsize=(10, sum(heights)), facecolor="black", layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row, (heading, panels) in zip(parts, widths, rows, strict=True):
        part.set_facecolor("black")
        part.suptitle(heading, color="white", fontsize=12)
        first = panels[0][1]
        own = (float(first.min()), float(first[first > first.min()].quantile(0.998)))
        for axes, (title, slice_, mask) in zip(part.subplots(1, len(row), width_ratios=row), panels, strict=True):
            low, high = LEVELS.get(title, own)
            axes.imshow(slice_.T.numpy(), cmap="gray", origin="lower", vmin=low, vmax=high)
            if mask is not None:
                over = np.ma.masked_equal(mask.T.numpy(), 0)
                axes.imshow(over, cmap="autumn", origin="lower", vmin=1, vmax=2, alpha=0.6)
            axes.set_title(title, color="white", fontsize=9)
            axes.axis("off")
    figure.savefig(path, dpi=100, facecolor="black", pil_kwargs={"quality": 85})
    pyplot.close(figure)


def cut(volume: Tensor, label: Tensor, axis: int = 2) -> Tensor:
    """The slice of a volume (1, X, Y, Z) across an axis where most of the label lies."""
    return volume[0].select(axis, int(label[0].movedim(axis, 0).flatten(1).sum(dim=1).argmax()))


def lesion_network_panels(image: Tensor, found: VolumeResult, label: Tensor) -> list[Panel]:
    """What the lesion network says of a head."""
    scan, healthy, probability = (cut(part, label) for part in (image, found.reconstruction, found.probability))
    panels: list[Panel] = [("a slice of a scan", scan, None), ("predicted healthy slice", healthy, None)]
    panels += [("probability of lesion", probability, None), ("mask", scan, cut(found.mask, label))]
    return [*panels, ("true lesions", scan, cut(label, label) > 0)]


@torch.no_grad()
def itermask_panels(demo_dir: Path) -> list[Panel]:
    """The first iteration and the result of the demo's IterMask, in the slice of a phantom with most of its lesion."""
    model: Any = load_model(str(demo_dir / "training" / "model.pt"))
    scan = demo_dir / "scans" / "phantom_testing_000"
    image, brain, label = (read(scan / f"{scan.name}_{ending}.nii.gz") for ending in ("flair", "mask", "seg"))
    scaled = scale_brain_intensity(image, brain > 0, **model.scaling)
    slices = [cut(volume, label)[None, None] for volume in (scaled, brain)]
    slice_, inside = (F.interpolate(part, (model.image_size, model.image_size), mode="nearest") for part in slices)
    masks = [model.refine(slice_, inside > 0, max_iterations=count)[0] for count in (0, 100)]
    noise = iteration_noise(slice_, 1)
    error, filled = model.masked_reconstruction(slice_, masks[0], inside > 0, noise)
    parts = (slice_, hide(slice_, masks[0], noise), filled)
    shown, hidden, healthy = (torch.where(inside > 0, part, -3.0)[0, 0] for part in parts)
    panels: list[Panel] = [
        ("a slice", shown, None),
        ("hide what looks unusual", hidden, None),
        ("reconstruct it", healthy, None),
    ]
    return [*panels, ("squared error", error[0, 0], None), ("repeat: the mask shrinks", shown, masks[1][0, 0])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the head of the demo, segment it, and draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default=str(BUNDLE / "docs"), help="where the figures go (default: the docs)")
    parser.add_argument("--demo_dir", default="demo", help="where demo.py --train has written (default: ./demo)")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as folder:
        image, label = (read(path) for path in make_scan(Path(folder), seed=1))
    model: Any = load_model(str(BUNDLE / "models" / "model.pt"))
    found = segment_volume(model, image, image > 0, (1.0, 1.0, 1.0))
    head = [(name, cut(image, label, axis), cut(found.mask, label, axis)) for name, axis in PLANES.items()]
    draw([("", head)], Path(options.output_dir) / "head.jpg")
    rows = [("Lesion network: what looks like a lesion?", lesion_network_panels(image, found, label))]
    if (Path(options.demo_dir) / "training" / "model.pt").is_file():
        rows.insert(0, ("IterMask2: what cannot be reconstructed?", itermask_panels(Path(options.demo_dir))))
    draw(rows, Path(options.output_dir) / "method.jpg")


if __name__ == "__main__":
    main()
