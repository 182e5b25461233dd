"""Slices of made brains: the heads are shared, each volume is its own, and a training needs no scan."""

import json
from itertools import product

import numpy as np
import pytest
from conftest import SMALL_NETWORK, run_bundle, write_nifti
from scripts.common.model_file import from_description, load_model
from scripts.data.made_slices import FIRST_HEAD, slices_of_label_maps, split_maps, volume_seed
from scripts.data.slices import read_slices


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """Three small heads: skull, fluid, cortex, white matter and ventricles, (60, 58, 56)."""
    folder = tmp_path_factory.mktemp("maps")
    labels = np.zeros((60, 58, 56), np.int16)
    for depth, label in ((2, 515), (5, 24), (7, 3), (12, 2)):
        labels[tuple(slice(depth, size - depth) for size in labels.shape)] = label
    labels[26:30, 22:36, 24:30], labels[30:34, 22:36, 24:30] = 4, 43
    for number in range(3):
        write_nifti(folder / f"head_{number}.nii.gz", labels)
    return folder


def test_last_heads_are_for_testing_and_those_before_for_validation(label_maps):
    names = {split: [path.name for path in paths] for split, paths in split_maps(label_maps, 1, 1).items()}
    assert names == {"training": ["head_0.nii.gz"], "validation": ["head_1.nii.gz"], "testing": ["head_2.nii.gz"]}


def test_no_volumes_share_a_seed_in_any_split_of_ten_runs():
    for heads, draws in ((390, 1), (30, 110)):
        volumes = product(FIRST_HEAD, range(heads), range(draws), range(10))
        seeds = [volume_seed(*volume) for volume in volumes]
        assert len(set(seeds)) == len(seeds) == 3 * heads * draws * 10
    assert volume_seed("training", 2, 3, 1) == 100_003 + 2 * 1009 + 3


def test_too_few_heads_are_told(label_maps, tmp_path):
    with pytest.raises(ValueError, match="holds 3 label maps, of which 1 are to validate and 2 to test on"):
        split_maps(label_maps, 1, 2)
    with pytest.raises(FileNotFoundError, match="No folder .*: set --label_maps_dir"):
        split_maps(label_maps / "none", 1)
    with pytest.raises(ValueError, match="`validation_heads` is 0"):
        slices_of_label_maps(str(label_maps), str(tmp_path / "out"), validation_heads=0)
    assert not (tmp_path / "out").exists()


def test_volumes_of_a_head_differ_and_their_brains_are_certain(label_maps, tmp_path):
    options = {"volumes": 2, "validation_heads": 1, "planes": ["coronal"], "slice_step": 12, "num_workers": 0}
    folder = slices_of_label_maps(str(label_maps), str(tmp_path / "slices"), contrast="t1", **options)
    content = json.loads((tmp_path / "slices" / "datalist.json").read_text())
    assert content["modalities"] == ["t1"] and content["certainly_healthy"] and content["planes"] == ["coronal"]
    training, validation = (read_slices(folder, split, ["t1"]) for split in ("training", "validation"))
    names = ["made_training_00_0", "made_training_00_1", "made_training_01_0", "made_training_01_1"]
    assert sorted({item["case"] for item in training}) == names
    assert {item["case"] for item in validation} == {"made_validation_00_0", "made_validation_00_1"}
    first = {}
    for item in [*training, *validation]:
        first.setdefault(item["case"], np.load(item["image"][0] if isinstance(item["image"], list) else item["image"]))
    assert len({array.tobytes() for array in first.values()}) == 6
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "slices").rglob("*.npy")}
    slices_of_label_maps(str(label_maps), str(tmp_path / "slices"), contrast="t1", **options)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "slices").rglob("*.npy")}


def test_a_training_needs_label_maps_alone(label_maps, tmp_path):
    run_bundle(
        "train",
        overlay="label_maps",
        label_maps_dir=str(label_maps),
        output_dir=str(tmp_path / "run"),
        model_file=str(tmp_path / "model.pt"),
        contrast="t2",
        volumes_per_head=1,
        validation_heads=1,
        slice_step=8,
        iterations=2,
        validation_interval=1,
        batch_size=2,
        **SMALL_NETWORK,
    )
    assert from_description(load_model(str(tmp_path / "model.pt")).description)["modalities"] == ["t2"]
    assert (tmp_path / "run" / "slices" / "datalist.json").is_file()
