"""Results lie where people look for them: in a folder for each case, or as a derivative of BIDS."""

import pytest
from scripts.inference.results import ResultFiles, bids_name


def test_names_of_both_layouts(tmp_path):
    plain, bids = ResultFiles(tmp_path), ResultFiles(tmp_path, "bids")
    assert plain.path("P 1", "anomaly_map") == tmp_path / "P 1" / "P 1_anomaly_map.nii.gz"
    assert plain.record("P 1") == tmp_path / "P 1" / "P 1_record.json"
    folder = tmp_path / "sub-01" / "ses-1" / "anat"
    acquisition = folder / "sub-01_ses-1_acq-3d_run-2_desc-anomaly_map.nii.gz"
    assert bids.path("sub-01_ses-1_acq-3d_run-2", "anomaly_map") == acquisition
    assert bids.path("sub-01_ses-1", "anomaly_map") == folder / "sub-01_ses-1_desc-anomaly_map.nii.gz"
    assert bids.path("sub-01_ses-1", "found_brain_mask") == folder / "sub-01_ses-1_desc-brain_mask.nii.gz"
    assert bids.record("P 1") == tmp_path / "sub-P1" / "anat" / "sub-P1_desc-anomaly_mask.json"


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("sub-01", "sub-01"),
        ("sub-01_ses-b", "sub-01_ses-b"),
        ("BraTS2021_00452", "sub-BraTS202100452"),
        ("sub-0_1", "sub-sub01"),
    ],
)
def test_names_in_bids_have_letters_and_digits(case, name):
    assert bids_name(case) == name


def test_cases_whose_names_in_bids_are_one_are_refused(tmp_path):
    ResultFiles(tmp_path).check_apart(["a_b", "ab"])
    ResultFiles(tmp_path, "bids").check_apart(["a", "b", "sub-a_ses-1", "sub-a_ses-2"])
    for cases in (["a_b", "c", "ab"], ["a", "sub-A"]):
        with pytest.raises(ValueError, match="and .* would both be sub-.* in BIDS"):
            ResultFiles(tmp_path, "bids").check_apart(cases)
