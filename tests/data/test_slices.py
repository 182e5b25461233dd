"""The slices on disk, as the datalist tells of them."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import make_scan, run_bundle
from scripts.data.slices import common_field_of_view, covered_planes, read_slices, slices_digest


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_datalist_tells_position_and_field_of_view_in_millimeters(tmp_path, suffix):
    affine = np.array([[2.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
    make_scan(tmp_path / "scans", "a", modalities=["flair"], suffix=suffix, affine=affine)
    splits = {"split_training": ["a"], "split_validation": "null", "split_testing": "null", "num_workers": 0}
    folders = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")}
    run_bundle("preprocess", modalities=["flair"], slice_range=[3, 6], **splits, **folders)
    slices = read_slices(tmp_path / "out", "training", ["flair"])
    assert [(item["slice"], item["position"]) for item in slices] == [(3, -18.0), (4, -14.0), (5, -10.0)]
    assert all(item["field_of_view"] == [2 * 14, 3 * 18] for item in slices)
    assert covered_planes(slices) == covered_planes(slices[::-1]) == (-18.0, -10.0)


def test_modalities_in_another_order_are_refused(tmp_path):
    (tmp_path / "x.npy").touch()
    entry = {"case": "a", "slice": 1, "image": "x.npy", "brain_mask": "x.npy"}
    (tmp_path / "datalist.json").write_text(json.dumps({"modalities": ["flair", "t1"], "training": [entry]}))
    with pytest.raises(ValueError, match=r"holds the modalities \['flair', 't1'\], but `modalities` is"):
        read_slices(tmp_path, "training", ["t1", "flair"])


def test_slices_of_a_split_are_read_with_absolute_paths(slices_dir, monkeypatch):
    found = read_slices(slices_dir, "testing", ["flair", "t1"])
    assert [item["case"] for item in found] == ["testing0", "testing1"]
    assert all(os.path.isfile(item[key]) for item in found for key in ("image", "brain_mask", "label"))
    monkeypatch.chdir(slices_dir)
    assert len(read_slices(".", "training")) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": []}, "has no slice for training: run configs/preprocess.json with `split_training` set"),
        ({"modalities": ["t2"]}, r"holds the modalities \['t2'\], but `modalities` is \['flair'\]"),
        ({"training": [{"case": "a", "slice": 1, "image": "x.npy", "brain_mask": "gone.npy"}]}, "gone.npy, which is"),
        ({"training": [{"case": "a", "slice": 1, "image": "../x.npy", "brain_mask": "x.npy"}]}, "which is outside"),
        ({"training": [{"case": "a", "image": "x.npy"}]}, "is no datalist of slices"),
        ({"training": ["x.npy"]}, "is no datalist of slices"),
        (None, "datalist.json is no JSON"),
    ],
)
def test_bad_datalist_of_slices(tmp_path, change, message):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4)))
    good = {"case": "a/b", "slice": 1, "image": "x.npy", "brain_mask": "x.npy"}
    content = {"modalities": ["flair"], "training": [good]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    assert len(read_slices(tmp_path, "training", ["flair"])) == 1
    (tmp_path / "datalist.json").write_text(json.dumps(content | change) if change else "[")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_slices(tmp_path, "training", ["flair"])


@pytest.mark.parametrize(
    "told",
    [
        {"deviation": [1.0, 0.0]},
        {"deviation": 1.0},
        {"median": [True]},
        {"field_of_view": [-1.0, 180.0]},
        {"field_of_view": [180.0]},
        {"field_of_view": 180.0},
        {"position": "18"},
        {"plane": ["axial"]},
    ],
)
def test_entry_that_tells_what_cannot_be_is_refused(tmp_path, told):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4)))
    entry = {"case": "a", "slice": 1, "image": "x.npy", "brain_mask": "x.npy"}
    good = {"deviation": [1.0], "median": [0], "field_of_view": [180, 0.5], "position": -18, "plane": "coronal"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry | good]}))
    assert len(read_slices(tmp_path, "training")) == 1
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry | good | told]}))
    with pytest.raises(ValueError, match="is no datalist of slices"):
        read_slices(tmp_path, "training")


def test_folder_without_a_datalist_of_slices(tmp_path):
    with pytest.raises(FileNotFoundError, match="No datalist.json in .*make it with configs/preprocess.json"):
        read_slices(tmp_path, "training")


def test_field_of_view_is_the_median_of_what_the_slices_tell():
    slices = [
        {"field_of_view": [200.0, 180.0]},
        {},
        {"field_of_view": [240.0, 190.0]},
        {"field_of_view": [210.0, 170.0]},
    ]
    assert common_field_of_view(slices) == (210.0, 180.0)
    assert common_field_of_view([{}]) == (0.0, 0.0)


def test_planes_of_slices_that_do_not_tell_theirs_are_unknown():
    assert covered_planes([{}]) == (float("inf"), -float("inf"))


def test_digest_of_slices_is_that_of_what_they_hold(slices_dir, tmp_path):
    slices = read_slices(slices_dir, "training")
    shutil.copytree(slices_dir, tmp_path / "moved")
    assert slices_digest(read_slices(tmp_path / "moved", "training")) == slices_digest(slices)
    others = [slices[1:], slices[::-1], [{**slices[0], "position": 1.0}, *slices[1:]], [slices[1], *slices[1:]]]
    assert len({slices_digest(items) for items in [slices, *others]}) == 5
    assert slices_digest([{"image": "scan.nii.gz"}]) is None
