"""Draw the figures of README: ``python bundle/scripts/tools/figures.py``, after ``demo.py --train``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.model_file import load_model  # noqa: E402
from scripts.data.nifti import load_volume  # noqa: E402
from scripts.data.transforms import scale_brain_intensity  # noqa: E402
from scripts.evaluation.pictures import LABEL_COLOR, PRED_COLOR, Panel, draw  # noqa: E402
from scripts.method.itermask import hide, iteration_noise  # noqa: E402
from scripts.method.volume import VolumeResult, segment_volume  # noqa: E402
from scripts.tools.demo import PLANES, cut, make_scan  # noqa: E402


def read(path: Path) -> np.ndarray:
    """The voxels of a volume (X, Y, Z), float32."""
    return np.asarray(load_volume(path).dataobj, dtype=np.float32)


def lesion_network_panels(image: np.ndarray, found: VolumeResult, label: np.ndarray) -> list[Panel]:
    """What the lesion network says of a head."""
    parts = (image, found.reconstruction[0].numpy(), found.probability[0].numpy(), found.mask[0].numpy(), label > 0)
    scan, healthy, probability, mask, lesions = (cut(part, label) for part in parts)
    return [
        Panel("a slice of a scan", scan),
        Panel("predicted healthy slice", healthy),
        Panel("probability of lesion", probability, levels=(0, 1)),
        Panel("mask", scan, {PRED_COLOR: mask}),
        Panel("true lesions", scan, {LABEL_COLOR: lesions}),
    ]


@torch.no_grad()
def itermask_panels(demo_dir: Path) -> list[Panel]:
    """The first iteration and the result of the demo's IterMask, in the slice of a phantom with most of its lesion."""
    model: Any = load_model(str(demo_dir / "training" / "model.pt"))
    scan = demo_dir / "scans" / "phantom_testing_000"
    image, brain, label = (read(scan / f"{scan.name}_{ending}.nii.gz") for ending in ("flair", "mask", "seg"))
    brain_mask = torch.from_numpy(brain)[None] > 0
    scaled = scale_brain_intensity(torch.from_numpy(image)[None], brain_mask, **model.scaling)
    slices = [torch.from_numpy(cut(volume, label))[None, None] for volume in (scaled[0].numpy(), brain)]
    slice_, inside = (F.interpolate(part, (model.image_size, model.image_size), mode="nearest") for part in slices)
    first, last = (model.refine(slice_, inside > 0, max_iterations=count)[0] for count in (0, 100))
    noise = iteration_noise(slice_, 1)
    error, filled = model.masked_reconstruction(slice_, first, inside > 0, noise)
    parts = (slice_, hide(slice_, first, noise), filled)
    shown, hidden, healthy = (torch.where(inside > 0, part, -3.0)[0, 0] for part in parts)
    return [
        Panel("a slice", shown),
        Panel("hide what looks unusual", hidden),
        Panel("reconstruct it", healthy),
        Panel("squared error", error[0, 0], levels=(0, 9)),
        Panel("repeat: the mask shrinks", shown, {PRED_COLOR: last[0, 0]}),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Paint the head of the demo, segment it, and draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default=str(BUNDLE / "docs"), help="where the figures go (default: the docs)")
    parser.add_argument("--demo_dir", default="demo", help="where demo.py --train has written (default: ./demo)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        image, label = (read(path) for path in make_scan(Path(folder), seed=1))
    model: Any = load_model(str(BUNDLE / "models" / "model.pt"))
    scan = torch.from_numpy(image)[None]
    found = segment_volume(model, scan, scan > 0, (1.0, 1.0, 1.0))
    mask = found.mask[0].numpy()
    planes = [(name, cut(image, label, axis), cut(mask, label, axis)) for name, axis in PLANES.items()]
    head = [Panel(name, plane, {PRED_COLOR: marked}) for name, plane, marked in planes]
    draw([("", head)], Path(options.output_dir) / "head.jpg")
    rows = [("Lesion network: what looks like a lesion?", lesion_network_panels(image, found, label))]
    if (Path(options.demo_dir) / "training" / "model.pt").is_file():
        rows.insert(0, ("IterMask2: what cannot be reconstructed?", itermask_panels(Path(options.demo_dir))))
    draw(rows, Path(options.output_dir) / "method.jpg")


if __name__ == "__main__":
    main()
