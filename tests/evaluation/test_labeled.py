"""Scans that are to be scored: with a label, or healthy on request."""

import numpy as np
import pytest
from conftest import write_nifti
from scripts.evaluation.labeled import find_labeled


@pytest.fixture
def folder(tmp_path):
    """Two scans of voxels of 1 x 2 x 3 mm, of which A has a label."""
    for name in ("A/A_flair", "A/A_seg", "B/B_flair"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones((4, 5, 6), np.int16), np.diag([1.0, 2, 3, 1]))
    return str(tmp_path)


def test_scan_without_label_is_left_out_and_told(folder, capsys):
    (found,) = find_labeled(folder, ["flair"])
    assert found["case"] == "A" and found["voxel_ml"] == pytest.approx(0.006)
    assert (
        "Without a label, left out (`unlabeled_are_healthy` takes them as healthy): 1\n  B" in capsys.readouterr().out
    )


def test_scan_without_label_is_healthy_on_request(folder, capsys):
    found = find_labeled(folder, ["flair"], unlabeled_are_healthy=True)
    assert [subject["case"] for subject in found] == ["A", "B"] and "label" not in found[1]
    assert "Without a label (CASE_seg.nii.gz), taken as healthy: 1\n  B" in capsys.readouterr().out


def test_named_scan_without_label_is_an_error_of_its_own(folder):
    found = find_labeled(folder, ["flair"], ["A", "B"])
    assert "error" not in found[0] and found[1]["error"].startswith("B has no label: expected B_seg.nii.gz")
    assert "voxel_ml" not in found[1]
    with pytest.raises(FileNotFoundError, match="B has no label"):
        find_labeled(folder, ["flair"], ["B"])
