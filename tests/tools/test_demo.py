"""The demo: the commands that it prints and runs, its table and its picture."""

import csv
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_nifti
from PIL import Image
from scripts.tools import demo


@pytest.fixture
def commands(monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command) or SimpleNamespace(returncode=0))
    return ran


def test_command_is_printed_as_it_is_run(commands, capsys):
    demo.run_bundle("evaluate", "evaluate", dataset_dir="scans", resume=True)
    (command,) = commands
    assert command[1:5] == ["-m", "monai.bundle", "run", "evaluate"]
    assert command[-4:] == ["--dataset_dir", "scans", "--resume", "True"]
    assert "inference.json" in command[6] and "evaluate.json" in command[6]
    assert f'$ python {" ".join(command[1:6])} "{command[6]}" --dataset_dir scans' in capsys.readouterr().out


def test_failed_command_ends_the_demo_with_its_exit_code(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(SystemExit) as ended:
        demo.run_bundle("inference", "inference")
    assert ended.value.code == 3


def test_table_has_the_mean_of_each_kind_of_lesion(tmp_path, capsys):
    kinds = {"a": "bright", "b": "dark", "c": "texture"}
    scores = {"a": (0.8, 0.6, 0.7), "b": (0.5, 0.1, ""), "c": (0.2, 0.3, 0.1)}
    with (tmp_path / "phantoms.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "kind"), *kinds.items()])
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        columns = ("case", "dice", "baseline_zscore_dice", "baseline_smoothed_dice")
        csv.writer(file).writerows([columns, *((f"{case}_007", *values) for case, values in scores.items())])
    demo.print_results(tmp_path / "cases.csv", tmp_path / "phantoms.csv")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["bright", "lesions", "0.800", "0.600", "0.700"] in lines
    assert ["dark", "lesions", "0.500", "0.100", "nan"] in lines
    assert ["not", "the", "brightest", "tissue", "0.350", "0.200", "nan"] in lines
    assert ["all", "0.500", "0.333", "nan"] in lines


def test_picture_shows_every_third_slice(tmp_path):
    volume = np.random.default_rng(0).integers(1, 99, (20, 20, 8)).astype(np.int16)
    files = [write_nifti(tmp_path / f"{name}.nii.gz", volume) for name in ("image", "label")]
    for name in demo.RESULTS:
        write_nifti(tmp_path / "case" / f"case_{name}.nii.gz", volume)
    demo.draw_volume(*files, tmp_path, "case", tmp_path / "picture.png")
    side = 20 * (300 // 20)  # slices 1, 4 and 7 with three panels each, two slices in the first row
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (6 * (side + 4) + 4, 16 + 2 * (side + 16 + 4))
