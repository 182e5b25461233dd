"""The demo: the scan that it paints, the commands that it prints and runs, and its picture."""

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


def test_segmentation_runs_the_command_that_it_prints_and_tells_dice_time_and_picture(scan, monkeypatch, capsys):
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
    assert "Dice 1.00" in told and "run view" in told and "--image SCAN.nii.gz" in told
    with Image.open(output / "head.png") as picture:
        assert min(picture.size) > 500 and np.ptp(np.asarray(picture)) > 200


def test_failed_command_ends_the_demo_with_its_exit_code(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(SystemExit) as ended:
        demo.run_bundle("inference", "inference")
    assert ended.value.code == 3


def test_training_runs_on_the_phantoms_that_it_makes(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(demo, "SUBJECTS", (1, 1, 1))
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0)
    )
    demo.train(tmp_path, 1)
    assert [command[4] for command in commands] == ["training", "evaluate"]
    for command in commands:
        assert command[command.index("--dataset_dir") + 1] == str(tmp_path / "scans")
    assert (tmp_path / "scans" / "phantom_testing_000").is_dir()
