"""The comparison of recipes and the grid of phantoms, on a few small slices and volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from scripts.common.model_file import load_model
from scripts.tools import recipes


def finished(output: Path, name: str, dice: list[float], baselines: bool = False) -> None:
    """What an evaluation leaves of a row."""
    folder = recipes.folder_of(output, name) / "evaluation"
    folder.mkdir(parents=True)
    scores = {"dice": np.mean(dice), "dice_ci_low": 0.1, "dice_ci_high": 0.9, "average_precision": 0.5}
    scores |= {"dice_upper_bound": 0.6, "dice_subset": 0.7, "network_passes": 3}
    if baselines:
        for prefix in ("baseline_zscore_", "baseline_smoothed_", "baseline_atlas_"):
            scores |= {prefix + key: value / 2 for key, value in list(scores.items()) if "baseline" not in key}
            scores |= {f"{prefix}difference{end}": value for end, value in (("", 0.2), ("_ci_low", 0.1))}
            scores[f"{prefix}difference_ci_high"] = 0.3
    (folder / "summary.json").write_text(json.dumps(scores))
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["case", "dice"], *([f"case{k}", value] for k, value in enumerate(dice))])


def test_table_shows_paired_differences(tmp_path):
    finished(tmp_path, "default", [0.5, 0.7, 0.6], baselines=True)
    finished(tmp_path, "sigma 0", [0.4, 0.6, 0.5])
    lines = recipes.table(tmp_path, ["default", "sigma 0"]).splitlines()
    assert "| 0.600 (" in lines[2]
    assert "| sigma 0 | 0.500 (0.100 to 0.900) | -0.100 (-0.100 to -0.100) | 0.700 | 0.500 |" in lines[3]
    assert "| smoothed | 0.300 (0.050 to 0.450) | -0.200 (-0.300 to -0.100) |" in lines[5]


def test_every_row_changes_something_and_has_a_folder_of_its_own(tmp_path):
    folders = {recipes.folder_of(tmp_path, row.name) for row in recipes.ROWS}
    assert len(folders) == len(recipes.ROWS)
    names = {row.name for row in recipes.ROWS} | {"bundle"}
    for row in recipes.ROWS[1:]:
        assert row.weights in names
        assert (
            row.model or row.training or row.calibration or row.evaluation or row.overlays or row.weights != "default"
        )


def run(name, tmp_path, monkeypatch, row):
    """Run one row; gives the commands that it would run."""
    commands = []
    monkeypatch.setattr(recipes, "run_bundle", lambda *names, **options: commands.append((names, options)))
    recipes.run_row(row, "slices", tmp_path, 20, None)
    return commands


def test_a_row_that_trains_gets_its_changes_and_the_length(tmp_path, monkeypatch):
    row = recipes.Row("a", {"sigma": 1}, {"noise_fraction": 0.0}, evaluation={"max_passes": 1}, overlays=["paper"])
    training, evaluation = run("a", tmp_path, monkeypatch, row)
    assert training[0] == ("training", "train", "paper", tmp_path / "a" / "train.json")
    changes = json.loads((tmp_path / "a" / "train.json").read_text())
    assert changes["iterations"] == 20 and changes["sigma"] == 1 and changes["noise_fraction"] == 0
    assert evaluation[0] == ("evaluate", "evaluate_slices", tmp_path / "a" / "evaluate.json")
    assert json.loads((tmp_path / "a" / "evaluate.json").read_text()) == {"max_passes": 1}


def test_a_row_that_does_not_train_is_calibrated_on_other_weights(tmp_path, monkeypatch):
    commands = run("b", tmp_path, monkeypatch, recipes.Row("b", weights="bundle", calibration={"first_fraction": 0.2}))
    assert [names[0] for names, _ in commands] == ["calibrate", "evaluate"]
    assert (tmp_path / "b" / "model.pt").read_bytes() == (recipes.BUNDLE / "models" / "model.pt").read_bytes()


def test_a_row_that_scores_otherwise_has_a_model_that_says_so(tmp_path, monkeypatch):
    row = recipes.Row("b", {"sign": "both", "network_def#last_weight": 0.0}, weights="bundle")
    run("b", tmp_path, monkeypatch, row)
    shipped = load_model(str(recipes.BUNDLE / "models" / "model.pt"))
    model = load_model(str(tmp_path / "b" / "model.pt"), sign="both", last_weight=0.0, sigma=2.0)
    assert all(
        torch.equal(value, model.state_dict()[name])
        for name, value in shipped.state_dict().items()
        if name != "description"
    )
