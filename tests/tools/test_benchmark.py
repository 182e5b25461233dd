"""The benchmark runs, on whatever device, and prints ratios to its first variant."""

from pathlib import Path

import nibabel
import pytest
import torch
from conftest import files_of
from scripts.tools import benchmark
from scripts.tools.benchmark import TrainingStep, fastest, main, table
from scripts.tools.demo import make_scan


@pytest.mark.parametrize("override", [[], ["paper"]], ids=["lesion network", "IterMask"])
@pytest.mark.parametrize("order", ["contiguous_format", "channels_last"])
def test_training_step_changes_the_weights_and_counts_its_operations(two_modalities, tmp_path, override, order):
    text = "".join(Path(file).read_text() for file in files_of("train", *override))
    options = {name: value for name, value in two_modalities.items() if f'"{name.partition("#")[0]}"' in text}
    options |= {"device": torch.device("cpu"), "batch_size": 2, "output_dir": str(tmp_path), "slice_range": None}
    step = TrainingStep(["train", *override], options, order)
    before = [parameter.clone() for parameter in step.network.parameters()]
    step()
    step()
    assert any(not torch.equal(one, other) for one, other in zip(before, step.network.parameters(), strict=True))
    assert step.flops() > 1000


def test_table_holds_the_ratio_to_the_first_variant_and_the_share_of_the_device(monkeypatch):
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, precision: 1e9 if precision == "float32" else 1e10)
    rows = table("steps", "slices", {"float32, plain": 2.0, "bfloat16, fast": 0.5}, 4, flops=1e9).splitlines()
    assert rows[0] == "| steps | slices/s | ratio | of the device |"
    assert rows[2:] == ["| float32, plain | 2 | 1.00 | 50% |", "| bfloat16, fast | 8 | 4.00 | 20% |"]
    assert set(fastest({"a": lambda: None}, 2)) == {"a"}


def test_scan_is_segmented(tmp_path, capsys):
    image = str(tmp_path / "part.nii.gz")
    nibabel.save(nibabel.load(make_scan(tmp_path, seed=0)[0]).slicer[:, :, 70:90], image)
    main(["--parts", "segmentation", "--image", image, "--repeats", "1", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert shown.count("float32, channels last") == 2 and "20 voxels | slices/s | ratio |" in shown
