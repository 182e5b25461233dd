"""The benchmark runs, on whatever device, and prints ratios to its first variant."""

import re
from pathlib import Path

import nibabel
import pytest
import torch
from conftest import files_of
from scripts.tools.benchmark import TrainingStep, fastest, main, rows_of
from scripts.tools.demo import make_scan


@pytest.mark.parametrize("override", [[], ["paper"]], ids=["lesion network", "IterMask"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_training_step_changes_the_weights_and_counts_its_operations(two_modalities, tmp_path, override, channels_last):
    text = "".join(Path(file).read_text() for file in files_of("train", *override))
    options = {name: value for name, value in two_modalities.items() if f'"{name.partition("#")[0]}"' in text}
    options |= {"device": torch.device("cpu"), "batch_size": 2, "output_dir": str(tmp_path), "slice_range": None}
    step = TrainingStep(["train", *override], options, channels_last, compiled=False)
    before = [parameter.clone() for parameter in step.network.parameters()]
    step()
    step()
    assert any(not torch.equal(one, other) for one, other in zip(before, step.network.parameters(), strict=True))
    assert step.flops() > 1000


def test_rows_hold_the_ratio_to_the_first_variant_and_the_share_of_the_device():
    times, flops = {"float32, plain": 2.0, "bfloat16, fast": 0.5}, {"float32, plain": 1e9, "bfloat16, fast": 1e9}
    rows = rows_of(times, flops, {"float32": 1e9, "bfloat16": 1e10}, batch_size=4)
    assert rows == [["float32, plain", "2.0", "1.00", "50%"], ["bfloat16, fast", "8.0", "4.00", "20%"]]
    assert set(fastest({"a": lambda: None}, 2, torch.device("cpu"))) == {"a"}


def test_scan_is_read_and_segmented(tmp_path, capsys):
    image = str(tmp_path / "part.nii.gz")
    nibabel.save(nibabel.load(make_scan(tmp_path, seed=0)[0]).slicer[:, :, 70:90], image)
    arguments = ["--parts", "reading", "segmentation", "--image", image, "--repeats", "1", "--device", "cpu"]
    main([*arguments, "--output_file", str(tmp_path / "table.md")])
    shown = capsys.readouterr().out
    assert re.search(r"reading and preparing it \| \d", shown) and shown.count("float32, channels last") == 2
    assert "| one scan | s | ratio |" in (tmp_path / "table.md").read_text()
