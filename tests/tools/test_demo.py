"""The demo: the scan that it paints, the commands that it prints and runs, its tables and its pictures."""

import csv
import subprocess
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scripts.tools import demo


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """The painted head with its label."""
    return demo.make_scan(tmp_path_factory.mktemp("scan"), seed=0)


def test_head_is_a_brain_with_lesions_that_are_brighter(scan):
    image, label = (np.asarray(nib.load(path).dataobj) for path in scan)
    brain, lesion = image > 0, label > 0
    assert nib.aff2axcodes(nib.load(scan[0]).affine) == ("R", "A", "S")
    assert 1000 < brain.sum() / 1000 < 1900 and 5 < lesion.sum() / 1000 < 30 and not (lesion & ~brain).any()
    assert image[lesion].mean() > 1.2 * np.median(image[brain])


def test_segmentation_runs_the_command_that_it_prints_and_tells_dice_time_memory_and_picture(scan, monkeypatch, capsys):
    commands, (image, label) = [], scan
    output = image.parent
    mask = output / "masks" / "head" / "head_anomaly_mask.nii.gz"

    def run(command, **_):
        commands.append(command)
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(label.read_bytes())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    demo.segment(output, seed=0)
    told, (command,) = capsys.readouterr().out, commands
    assert command[1:5] == ["-m", "monai.bundle", "run", "inference"] and command[6].endswith("inference.json")
    assert command[7:] == ["--image", str(image), "--output_dir", str(output / "masks")]
    assert f"$ python {' '.join(command[1:])}" in told
    assert "Dice 1.00" in told and " GB of memory" in told and "run view" in told and "--image SCAN.nii.gz" in told
    with Image.open(output / "head.png") as picture:
        assert min(picture.size) > 500 and np.ptp(np.asarray(picture)) > 200


def test_failed_command_ends_the_demo_with_its_exit_code(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(SystemExit) as ended:
        demo.run_bundle("inference", "inference")
    assert ended.value.code == 3


def test_table_has_the_mean_of_each_kind_of_lesion(tmp_path, capsys):
    kinds = {"a": "bright", "b": "dark", "c": "bright"}
    scores = {"a": (0.8, 0.6, 0.7), "b": (0.5, 0.1, ""), "c": (0.2, 0.3, 0.1)}
    with (tmp_path / "phantoms.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "kind"), *kinds.items()])
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        columns = ("case", "dice", "baseline_zscore_dice", "baseline_smoothed_dice")
        csv.writer(file).writerows([columns, *((f"{case}_007", *values) for case, values in scores.items())])
    demo.print_results(tmp_path / "cases.csv", tmp_path / "phantoms.csv")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["bright", "lesions", "0.500", "0.450", "0.400"] in lines
    assert ["dark", "lesions", "0.500", "0.100", "nan"] in lines
    assert ["all", "lesions", "0.500", "0.333", "nan"] in lines
