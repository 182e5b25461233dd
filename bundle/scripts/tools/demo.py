"""The whole way on made brains: ``python bundle/scripts/tools/demo.py`` shows each command and the result."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import atomic, check_output, check_writable  # noqa: E402
from scripts.common.paths import config_files  # noqa: E402
from scripts.data.nifti import load_volume  # noqa: E402
from scripts.data.scans import RESULTS  # noqa: E402
from scripts.evaluation.pictures import LABEL_COLOR, PRED_COLOR, enlarge, gray, heat, outline, tile, to_display  # noqa: E402
from scripts.tools.phantoms import make_phantoms  # noqa: E402

SLICES = "[8,16]"
SHOWN_CASE = "phantom_testing_000"


def run_bundle(run_id: str, *configs: str | Path, **overrides: object) -> None:
    """Print and run one command of the bundle.

    Args:
        run_id: What to run.
        configs: A config and its overlays: names of the bundle's own, or files.
        overrides: Ids and their values.

    Raises:
        SystemExit: When the command fails, with its exit code.
    """
    files = [os.path.relpath(path) for path in config_files(*configs)]
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", files[0] if len(files) == 1 else str(files)]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    shown = " ".join(f'"{part}"' if part.startswith("[") else part for part in command)
    print(f"\n$ python {shown}", flush=True)
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    code = subprocess.run([sys.executable, *command], env=environment, check=False).returncode
    if code:
        raise SystemExit(code)


def draw_volume(image_file: Path, label_file: Path, results: Path, case: str, picture: Path) -> None:
    """Draw every third slice of a volume: image, anomaly map, and mask (red) on label (green)."""
    image, label = (load_volume(path).get_fdata() for path in (image_file, label_file))
    mask, anomaly_map = (load_volume(results / case / f"{case}_{name}.nii.gz").get_fdata() for name in RESULTS)
    high, peak = np.percentile(image[image > 0], 99.5), float(anomaly_map.max())
    rows = []
    for k in range(1, image.shape[2], 3):
        brain = gray(to_display(image[..., k]), 0, high)
        outlined = outline(outline(brain, to_display(label[..., k]), LABEL_COLOR), to_display(mask[..., k]), PRED_COLOR)
        panels = {"image": brain, "anomaly map": heat(to_display(anomaly_map[..., k]), peak), "mask on label": outlined}
        rows.append([(f"{name}, slice {k}", enlarge(panel, 300)) for name, panel in panels.items()])
    half = (len(rows) + 1) // 2
    rows = [left + right for left, right in zip(rows[:half], [*rows[half:], []][:half], strict=True)]
    with atomic(picture) as temporary:
        tile(rows, f"{case}: mask red, label green").save(temporary)


def print_results(cases_file: Path, phantoms_file: Path) -> None:
    """Print mean Dice for each kind of lesion, of the method and of the baselines."""
    with open(phantoms_file, newline="") as file:
        kinds = {row["case"]: row["kind"] for row in csv.DictReader(file)}
    with open(cases_file, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"dice": "IterMask", "baseline_zscore_dice": "z-score", "baseline_smoothed_dice": "smoothed z-score"}
    print(f"\n{'mean Dice':24}" + "".join(f"{title:>18}" for title in columns.values()))
    groups = {
        f"{kind} lesions": [row for row in rows if kinds[row["case"][:-4]] == kind]
        for kind in sorted({*kinds.values()})
    }
    groups["not the brightest tissue"] = groups.get("dark lesions", []) + groups.get("texture lesions", [])
    groups["all"] = rows
    for title, members in groups.items():
        if members:
            means = [np.mean([float(row[column] or "nan") for row in members]) for column in columns]
            print(f"{title:24}" + "".join(f"{mean:18.3f}" for mean in means))
    print("\nThresholds come from healthy slices alone, the baselines' at the method's false-positive fraction.")
    print(f"Dice at the label-free threshold: {np.mean([float(row['dice']) for row in rows]):.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make phantoms, preprocess, train, evaluate, segment a volume and draw it; a second run goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="demo", help="where everything goes (default: ./demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantoms and of the training")
    parser.add_argument("--subjects", type=int, nargs=3, default=(96, 12, 24), help="to train on, validate and test")
    parser.add_argument("--iterations", type=int, help="of the training (default: that of demo.json)")
    options = parser.parse_args(arguments)
    try:
        output = check_writable(options.output_dir)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    report_errors()
    picture = output / f"{SHOWN_CASE}.png"
    check_output(picture)
    scans, slices, model = output / "scans", output / "slices", output / "model.pt"
    evaluation, segmentation = output / "evaluation", output / "segmentation"

    print(f"Phantoms: brains in FLAIR, T1 and T2, in {scans}", flush=True)
    training, validation, testing = options.subjects
    make_phantoms(scans, training, validation, testing, seed=options.seed, num_workers=os.cpu_count() or 1)
    run_bundle("preprocess", "preprocess", dataset_dir=scans, output_dir=slices, slice_range=SLICES)
    length = {} if options.iterations is None else {"iterations": options.iterations}
    settings = {"output_dir": output / "training", "seed": options.seed, "resume": True, **length}
    run_bundle("training", "train", "demo", dataset_dir=slices, model_file=model, **settings)
    run_bundle("evaluate", "evaluate_slices", dataset_dir=slices, output_dir=evaluation, model_file=model)
    image = scans / SHOWN_CASE / f"{SHOWN_CASE}_flair.nii.gz"
    run_bundle("inference", "inference", image=image, output_dir=segmentation, model_file=model)
    draw_volume(image, scans / SHOWN_CASE / f"{SHOWN_CASE}_seg.nii.gz", segmentation, SHOWN_CASE, picture)

    print_results(evaluation / "cases.csv", scans / "phantoms.csv")
    print(f"Table: {evaluation / 'cases.csv'}\nPictures: {evaluation / 'pictures'}\nModel: {model}")
    print(f"One volume: {segmentation / SHOWN_CASE} (NIfTI), drawn in {picture}")


if __name__ == "__main__":
    main()
