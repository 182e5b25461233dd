"""What each part of the method is worth: ``python bundle/scripts/tools/recipes.py`` changes one thing at a time."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.files import atomic, check_writable, write_json  # noqa: E402
from scripts.common.model_file import build, read_settings, read_weights, save_model  # noqa: E402
from scripts.common.ownership import written  # noqa: E402
from scripts.evaluation.metrics import bootstrap_interval  # noqa: E402
from scripts.tools.demo import run_bundle  # noqa: E402

SMALL_PUBLISHED = {
    "backbone#channels": 16,
    "backbone#channel_multipliers": [1, 2, 3, 4],
    "backbone#residual_blocks": 1,
    "backbone#attention_levels": [],
    "backbone#dropout": 0.0,
    "backbone#patch_size": 2,
}
SQUARES = {"_target_": "scripts.training.masks.random_squares", "_mode_": "callable"}
MEAN_LOSS = {"_target_": "scripts.training.losses.masked_error", "_mode_": "callable"}


@dataclass
class Row:
    """One change: to the model, to the training alone, to the calibration or to the evaluation.

    A row whose training changes is trained, the others take the weights of ``weights``.
    """

    name: str
    model: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] | None = None
    calibration: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)
    overlays: Sequence[str] = ()
    weights: str = "default"


ROWS = [
    Row("default", training={}),
    Row("denoising autoencoder", training={}, overlays=["denoising"]),
    Row(
        "denoising autoencoder scored alike",
        overlays=["denoising"],
        weights="denoising autoencoder",
        model={"mirror_weight": 0.5},
        calibration={"certain_fraction": 0.005},
    ),
    Row("published method", model=SMALL_PUBLISHED, training={}, overlays=["paper"]),
    Row("2,400 iterations (the bundle's weights)", weights="bundle"),
    Row("sign: both", {"sign": "both"}),
    Row("no mirrored score", {"mirror_weight": 0.0}),
    Row("sigma 0", {"sigma": 0.0}),
    Row("sigma 1.3", {"sigma": 1.3}),
    Row("sigma 3", {"sigma": 3.0}),
    Row("one pass", {"network_def#last_weight": 0.0}),
    Row("first mask 5 %", calibration={"first_fraction": 0.05}),
    Row("first mask 20 %", calibration={"first_fraction": 0.2}),
    Row("stop below 10 %", evaluation={"stop_shrink": 0.1}),
    Row("one refined pass", evaluation={"max_passes": 1}),
    Row("one threshold at 2 %", calibration={"certain_fraction": 0.02}),
    Row("thresholds at 1 %, 0.25 %", calibration={"exceed_fraction": 0.01, "certain_fraction": 0.0025}),
    Row("thresholds at 4 %, 1 %", calibration={"exceed_fraction": 0.04, "certain_fraction": 0.01}),
    Row("areas under 10 px dropped", evaluation={"least_pixels": 10}),
    Row("areas under 30 px dropped", evaluation={"least_pixels": 30}),
    Row("hardly trained: 4 iterations", training={"iterations": 4}),
    Row("seed 1", training={"seed": 1}),
    Row("squared error, no variance", {"network_def#predict_variance": False}, {"loss": MEAN_LOSS}),
    Row(
        "scaling of the preprocessing",
        {"network_def#robust_scaling": False},
        {"prepare_slice#robust_scaling": False},
    ),
    Row("published spatial masks", training={"spatial_masks": SQUARES}),
    Row("never noise alone", training={"noise_fraction": 0.0}),
    Row("noise of 2 deviations", training={"noise_range": [2.0, 2.0]}),
    Row("no augmentation", training={"prepare_training#augment": False}),
    Row("newest weights, no average", training={"ema_momentum": 1.0}),
    Row("8 channels", {"backbone#channels": 8}, {}),
    Row("published method, radius 30", model={**SMALL_PUBLISHED, "radius": 30}, training={}, overlays=["paper"]),
]


def folder_of(output: Path, name: str) -> Path:
    """A row's folder."""
    return output / "".join(c if c.isalnum() else "_" for c in name)


def take_model(source: Path, target: Path, changes: Mapping[str, object]) -> None:
    """Copy a model file, and let it say that it scores as the ids ``changes`` have it."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)
    if changes:
        weights = read_weights(str(source))
        changed = {name.removeprefix("network_def#"): value for name, value in changes.items()}
        model = build({**read_settings(weights, source), **changed})
        model.load_state_dict({**weights, "description": model.description})
        save_model(model, str(target))


def run_row(row: Row, dataset_dir: str, output: Path, iterations: int, subset: str | None) -> None:
    """Train if need be, calibrate and evaluate one row, unless an earlier run has done so."""
    folder = folder_of(output, row.name)
    if (folder / "evaluation" / "summary.json").is_file():
        return
    folder.mkdir(exist_ok=True)
    length = {"iterations": iterations, "validation_interval": 100, "batch_size": 8, "learning_rate": 0.0015}
    training_changes = {**length, **row.model, **(row.training or {}), **row.calibration}
    overlays = {"train.json": training_changes, "evaluate.json": row.evaluation}
    with written(folder, "recipes", overlays):
        for name, changes in overlays.items():
            write_json(folder / name, changes)
    model = folder / "model.pt"
    training: list[str | Path] = ["train", *row.overlays, folder / "train.json"]
    if row.training is not None:
        run_bundle("training", *training, dataset_dir=dataset_dir, output_dir=folder, model_file=model, resume=True)
    else:
        source = BUNDLE / "models" if row.weights == "bundle" else folder_of(output, row.weights)
        with written(folder, "recipes", [model.name]):
            take_model(source / "model.pt", model, row.model)
            run_bundle("calibrate", *training, dataset_dir=dataset_dir, model_file=model)
    scoring = {"dataset_dir": dataset_dir, "output_dir": folder / "evaluation", "model_file": model, "pictures": False}
    if subset:
        scoring["subsets"] = {"subset": subset}
    atlas = ["atlas"] if row.name == "default" else []
    run_bundle("evaluate", "evaluate_slices", *atlas, folder / "evaluate.json", **scoring)


def read_row(output: Path, name: str) -> tuple[dict, np.ndarray]:
    """A finished row's summary, and Dice of each case."""
    folder = folder_of(output, name) / "evaluation"
    with open(folder / "cases.csv", newline="") as file:
        dice = np.array([float(case["dice"]) for case in csv.DictReader(file)])
    return json.loads((folder / "summary.json").read_text()), dice


def table(output: Path, names: Sequence[str]) -> str:
    """All finished rows in Markdown, with the difference of each to the first."""
    lines = [
        "| | Dice (95 % interval) | to the default | subset | AP | upper bound | passes |",
        "|---|---|---|---|---|---|---|",
    ]

    def line(name: str, values: Mapping, prefix: str, difference: str, passes: str) -> str:
        low, high = values[f"{prefix}dice_ci_low"], values[f"{prefix}dice_ci_high"]
        return (
            f"| {name} | {values[prefix + 'dice']:.3f} ({low:.3f} to {high:.3f}) | {difference} | "
            f"{values.get(prefix + 'dice_subset', float('nan')):.3f} | {values[prefix + 'average_precision']:.3f} | "
            f"{values[prefix + 'dice_upper_bound']:.3f} | {passes} |"
        )

    def shown(difference: np.ndarray) -> str:
        low, high = bootstrap_interval(difference)
        return f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f})"

    summary, default = read_row(output, names[0])
    lines.append(line(names[0], summary, "", "", f"{summary['network_passes']:.1f}"))
    for name in names[1:]:
        values, dice = read_row(output, name)
        lines.append(line(name, values, "", shown(dice - default), f"{values['network_passes']:.1f}"))
    for baseline in ("zscore", "smoothed", "atlas"):
        prefix = f"baseline_{baseline}_"
        mean, low, high = (-summary[f"{prefix}difference{end}"] for end in ("", "_ci_high", "_ci_low"))
        lines.append(line(baseline, summary, prefix, f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", "0"))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rows, or those named; a second run goes on where it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="slices that preprocess.json wrote")
    parser.add_argument("--output_dir", default="recipes", help="a folder for each row, and table.md")
    parser.add_argument("--iterations", type=int, default=800, help="of each training")
    parser.add_argument("--subset", help="file with the names of the cases whose Dice is wanted apart")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of the rows to run after the first (default: all)")
    options = parser.parse_args(arguments)
    try:
        output = check_writable(options.output_dir)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    rows = [ROWS[0], *(ROWS[1:] if options.rows is None else [ROWS[number] for number in options.rows])]
    for number, row in enumerate(rows):
        print(f"\n[{number + 1}/{len(rows)}] {row.name}", flush=True)
        run_row(row, options.dataset_dir, output, options.iterations, options.subset)
        with written(output, "recipes", ["table.md"]), atomic(output / "table.md") as temporary:
            temporary.write_text(table(output, [done.name for done in rows[: number + 1]]))
    print(f"\n{(output / 'table.md').read_text()}\nTable: {output / 'table.md'}")


if __name__ == "__main__":
    main()
