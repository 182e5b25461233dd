"""Slices of three planes, of volumes and of single planes, and the pixels that they get."""

import numpy as np
import pytest
import torch
from conftest import make_scan, run_bundle, write_nifti
from scripts.common.checks import check_settings
from scripts.data.slices import covered_planes, read_slices, read_source
from scripts.data.transforms import LOWEST, ResampleSliced, resample_slice


def preprocess(root, output_dir, **options):
    options = {"split_training": ["a"], "split_validation": None, "split_testing": None, **options}
    run_bundle(
        "preprocess", dataset_dir=str(root), output_dir=str(output_dir), slice_range=None, num_workers=0, **options
    )
    return read_slices(output_dir, "training", ["flair"])


@pytest.fixture
def volume(tmp_path):
    """A scan of 1 x 2 x 3 mm voxels, (14, 18, 12), made of slices 1 to 10."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    make_scan(tmp_path / "scans", "a", modalities=["flair"], affine=affine)
    return tmp_path / "scans"


def test_slices_of_each_plane_lie_as_the_network_sees_them(volume, tmp_path):
    entries = preprocess(volume, tmp_path / "slices", planes=["axial", "coronal", "sagittal"])
    by_plane = {plane: [one for one in entries if one["plane"] == plane] for plane in ("axial", "coronal", "sagittal")}
    shapes = {"axial": (1, 14, 18), "coronal": (1, 14, 12), "sagittal": (1, 12, 18)}
    sizes = {"axial": [14.0, 36.0], "coronal": [14.0, 36.0], "sagittal": [36.0, 36.0]}
    for plane, members in by_plane.items():
        assert members and all(np.load(one["image"]).shape == shapes[plane] for one in members)
        assert all(one["field_of_view"] == sizes[plane] for one in members)
    full = np.stack([np.load(one["image"])[0] for one in by_plane["axial"]], axis=2)  # slices 1 to 10
    coronal, sagittal = by_plane["coronal"][0], by_plane["sagittal"][0]
    assert np.array_equal(np.load(coronal["image"])[0, :, 1:11], full[:, coronal["slice"]])
    assert np.array_equal(np.load(sagittal["image"])[0, 1:11], full[sagittal["slice"]].T)
    assert coronal["position"] == 6 + 2 * coronal["slice"] and sagittal["position"] == 5 + sagittal["slice"]
    assert covered_planes(entries) == (float("inf"), float("-inf"))
    assert covered_planes(by_plane["axial"]) == (10, 37)


def test_scan_of_a_single_plane_is_a_slice(tmp_path):
    voxels = np.zeros((1, 20, 16), np.int16)
    voxels[:, 4:16, 3:13] = np.arange(120).reshape(12, 10) + 50
    write_nifti(tmp_path / "scans" / "a" / "a_flair.nii.gz", voxels)
    (entry,) = preprocess(tmp_path / "scans", tmp_path / "slices", planes=["sagittal"])
    assert np.load(entry["image"]).shape == (1, 16, 20) and entry["plane"] == "sagittal"
    assert preprocess(tmp_path / "scans", tmp_path / "slices", planes=["sagittal"]) == [entry]


def test_folders_of_slices_are_joined_where_they_agree(volume, tmp_path):
    one = preprocess(volume, tmp_path / "one")
    other = preprocess(volume, tmp_path / "other", planes=["coronal"])
    folders = [str(tmp_path / "one"), str(tmp_path / "other")]
    assert read_slices(folders, "training", ["flair"]) == one + other
    assert read_source(folders)["modalities"] == ["flair"] == read_source(None)["modalities"]
    with pytest.raises(ValueError, match="holds slices of flair, but `modalities` is t1"):
        read_source(folders, ["t1"])


@pytest.mark.parametrize("planes", ["axial", [], ["frontal"]])
def test_unknown_planes_are_named(planes):
    with pytest.raises(ValueError, match="`planes` must be a list of axial, coronal, sagittal"):
        check_settings(planes=planes)


@pytest.mark.parametrize("value", [1.5, -1.5])
def test_pixels_get_the_asked_size_and_the_brain_the_middle(value):
    image, brain = torch.full((2, 40, 30), LOWEST), torch.zeros(1, 40, 30)
    image[:, 2:22, 5:15], brain[:, 2:22, 5:15] = value, 1
    found, mask = resample_slice(image, brain, (1.0, 3.0), 2.0, (24, 32))
    assert found.shape == (2, 24, 32) and mask.shape == (1, 24, 32)
    rows, columns = (mask[0].bool().any(dim=axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    assert len(rows) == pytest.approx(10, abs=1) and len(columns) == pytest.approx(15, abs=1)
    assert sum(rows) / len(rows) == pytest.approx(11.5, abs=1) and sum(columns) / len(columns) == pytest.approx(
        15.5, abs=1
    )
    assert torch.allclose(found[:, mask[0] > 0], torch.tensor(value))  # nothing of the background is mixed in
    assert (found[:, mask[0] == 0] == LOWEST).all()


def test_canvas_smaller_than_the_brain_cuts_it():
    image = torch.ones(1, 40, 30)
    found, mask = resample_slice(image, image, (1.0, 1.0), 1.0, (16, 16))
    assert mask.all() and torch.allclose(found, torch.ones(1, 16, 16))
    assert not resample_slice(image, 0 * image, (1.0, 1.0), 1.0, (16, 16))[1].any()


def test_slice_without_its_size_is_named():
    data = {"image": torch.ones(1, 8, 8), "brain_mask": torch.ones(1, 8, 8), "case": "odd"}
    with pytest.raises(ValueError, match="odd does not tell its height and width in mm"):
        ResampleSliced("image", (16, 16))(data)
    found = ResampleSliced("image", (8, 8), 2.0)({**data, "field_of_view": [16.0, 16.0]})
    assert torch.allclose(found["image"], data["image"]) and found["brain_mask"].shape == (1, 8, 8)
