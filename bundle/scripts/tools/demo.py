"""A first segmentation that needs no scan of one's own: ``python bundle/scripts/tools/demo.py``.

It paints a FLAIR head with lesions, segments it with the weights of the bundle by the command that any scan takes, and
draws what was found. With ``--train`` it also trains, evaluates and segments on small phantoms, which takes minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import atomic, check_writable  # noqa: E402
from scripts.common.paths import config_files  # noqa: E402
from scripts.data.label_maps import Limits, RandLabelToImaged  # noqa: E402
from scripts.data.made_lesions import add_lesions  # noqa: E402
from scripts.data.nifti import load_volume  # noqa: E402
from scripts.evaluation.pictures import LABEL_COLOR, PRED_COLOR, Panel, draw  # noqa: E402
from scripts.tools.phantoms import CENTER, label_map, make_phantoms  # noqa: E402

CASE = "head"
HEAD = {"x": (-76, 76), "y": (-95, 95), "z": (-83, 75)}  # mm around the brain's middle
LESION_ML, LESIONS, LESION_CONTRAST = 25.0, 10, 4.0  # together; their number; deviations of white matter
PLACES = ("periventricular", "periventricular", "anywhere")
GRAY_LEVELS = 500  # of white matter
SUBJECTS = (96, 12, 24)  # phantoms to train, to validate and to test on
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis across each


def make_scan(folder: Path, seed: int) -> list[Path]:
    """Paint a FLAIR head with lesions, without its skull, and write ``head_flair.nii.gz`` and ``head_seg.nii.gz``."""
    grid = [np.arange(start, end) + 0.5 for start, end in HEAD.values()]
    affine = nib.affines.from_matvec(np.eye(3), CENTER + [axis[0] for axis in grid])
    limits = Limits(resolution=(0.4, 0.8), noise=(0.02, 0.05), shading=0.03, bias=0.1)
    limits = limits._replace(thick_probability=0.0, defects_probability=0.0)  # a good scanner and brain extraction
    transform = RandLabelToImaged(limits=limits)
    transform.set_random_state(seed)
    drawn = MetaTensor(torch.from_numpy(label_map(seed, grid))[None], affine=affine)
    painted = transform({"label_map": drawn, "case": CASE})
    image, brain_mask, labels = (painted[key][0].numpy() for key in ("image", "brain_mask", "label_map"))
    random = np.random.default_rng(seed)
    made = add_lesions(image, brain_mask, labels, random, LESION_ML, LESIONS, LESION_CONTRAST, PLACES)
    levels = np.where(brain_mask, np.maximum(np.round(made.image * GRAY_LEVELS), 1), 0).astype(np.int16)
    files = []
    for key, voxels in (("flair", levels), ("seg", made.label.astype(np.uint8))):
        files.append(folder / f"{CASE}_{key}.nii.gz")
        with atomic(files[-1]) as temporary:
            nib.save(nib.Nifti1Image(voxels, painted["image"].affine.numpy()), temporary)
    return files


def run_bundle(run_id: str, *configs: str | Path, **overrides: object) -> float:
    """Print and run one command of the bundle.

    Args:
        run_id: What to run.
        configs: A config and its override configs: names of the bundle's own, or files.
        overrides: Options and their values.

    Returns:
        The seconds that it took.

    Raises:
        SystemExit: When the command fails, with its exit code.
    """
    files = [os.path.relpath(path) for path in config_files(*configs)]
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", files[0] if len(files) == 1 else str(files)]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    shown = " ".join(f'"{part}"' if part.startswith("[") else part for part in command)
    print(f"\n$ python {shown}", flush=True)
    start = time.perf_counter()
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    code = subprocess.run([sys.executable, *command], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)
    return time.perf_counter() - start


def peak_memory() -> str:
    """The largest memory that a command of this process took, in words."""
    if resource is None:
        return "an unknown amount of memory"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9:.1f} GB of memory"


def cut(volume: np.ndarray, label: np.ndarray, axis: int = 2) -> np.ndarray:
    """The slice of a volume (X, Y, Z) across an axis where most of the label lies."""
    return volume.take(int(np.moveaxis(label, axis, 0).sum(axis=(1, 2)).argmax()), axis)


def segment(output: Path, seed: int) -> None:
    """Paint a head, segment it, and say and draw how well that went."""
    print("Painting a FLAIR head with lesions (some seconds)", flush=True)
    files = make_scan(output, seed)
    seconds = run_bundle("inference", "inference", image=files[0], output_dir=output / "masks")
    files.append(output / "masks" / CASE / f"{CASE}_anomaly_mask.nii.gz")
    image, truth, found = (np.asarray(load_volume(path).dataobj) for path in files)
    dice = 2 * np.count_nonzero(truth & found) / (np.count_nonzero(truth) + np.count_nonzero(found))
    rows: list[tuple[str, list[Panel]]] = [("Synthetic FLAIR", []), ("Its lesions (green) and the mask (red)", [])]
    for name, axis in PLANES.items():
        plane, lesions, mask = (cut(volume, truth, axis) for volume in (image, truth, found))
        rows[0][1].append(Panel(name, plane))
        rows[1][1].append(Panel(name, plane, {LABEL_COLOR: lesions, PRED_COLOR: mask}))
    picture = output / f"{CASE}.png"
    with atomic(picture) as temporary:
        draw(rows, temporary)
    print(f"\nDice {dice:.2f}: {found.sum() / 1000:.1f} ml are marked, the lesions have {truth.sum() / 1000:.1f} ml.")
    print(f"The command took {seconds:.0f} s and {peak_memory()}.\nPicture: {picture}\nMask:    {files[-1]}")
    view, inference = (os.path.relpath(BUNDLE / "configs" / f"{name}.json") for name in ("view", "inference"))
    print("\nNext, look at it in a browser (needs pip install -r requirements-view.txt):")
    print(f"$ python -m monai.bundle run view --config_file {view} --results_dir {output / 'masks'}")
    print("or segment a scan of your own:")
    print(f"$ python -m monai.bundle run inference --config_file {inference} --image SCAN.nii.gz --output_dir MASKS")


def train(output: Path, seed: int) -> None:
    """Make phantoms, train on the healthy ones, and evaluate on those with a lesion; a second run goes on."""
    scans, training, evaluation = (output / name for name in ("scans", "training", "evaluation"))
    print(f"\nPhantoms: brains in FLAIR, T1 and T2, in {scans}", flush=True)
    make_phantoms(scans, *SUBJECTS, seed=seed)
    model, slices = training / "model.pt", {"slice_range": "[8,16]"}
    run_bundle("training", "demo", dataset_dir=scans, output_dir=training, seed=seed)
    run_bundle("evaluate", "evaluate_slices", dataset_dir=scans, output_dir=evaluation, model_file=model, **slices)
    print(f"Model:   {model}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment a synthetic head, or train on phantoms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="demo", help="where everything goes (default: ./demo)")
    parser.add_argument("--seed", type=int, default=1, help="of the head, of the phantoms and of the training")
    parser.add_argument("--train", action="store_true", help="train on phantoms afterwards (minutes)")
    options = parser.parse_args(arguments)
    report_errors()
    output = check_writable(options.output_dir)
    segment(output, options.seed)
    if options.train:
        train(output, options.seed)
    else:
        print("or train on phantoms, step by step, with this command and --train.")


if __name__ == "__main__":
    main()
