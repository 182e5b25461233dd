"""Results lie where people look for them."""

import pytest
from scripts.inference.results import ResultFiles, bids_name, bids_source


def test_names_of_both_layouts(tmp_path):
    plain, bids = ResultFiles(tmp_path), ResultFiles(tmp_path, "bids")
    assert plain.path("P 1", "anomaly_map") == tmp_path / "P 1" / "P 1_anomaly_map.nii.gz"
    assert plain.record("P 1") == tmp_path / "P 1" / "P 1_record.json"
    folder = tmp_path / "sub-01" / "ses-1" / "anat"
    assert bids.path("sub-01_ses-1", "anomaly_map") == folder / "sub-01_ses-1_desc-anomaly_map.nii.gz"
    assert bids.path("sub-01_ses-1_acq-3d", "found_brain_mask") == folder / "sub-01_ses-1_acq-3d_desc-brain_mask.nii.gz"
    assert bids.record("P 1") == tmp_path / "sub-P1" / "anat" / "sub-P1_record.json"


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("sub-01", "sub-01"),
        ("sub-01_ses-b", "sub-01_ses-b"),
        ("sub-01_acq-3d", "sub-01_acq-3d"),
        ("sub-01_ses-b_acq-3d_desc-preproc_run-2", "sub-01_ses-b_acq-3d_run-2"),
        ("BraTS2021_00452", "sub-BraTS202100452"),
        ("sub-0_1", "sub-sub01"),
    ],
)
def test_names_of_bids_stay_and_others_have_letters_and_digits(case, name):
    assert bids_name(case) == name


def test_cases_whose_names_in_bids_are_one_are_refused(tmp_path):
    ResultFiles(tmp_path).check_apart(["a_b", "ab"])
    ResultFiles(tmp_path, "bids").check_apart(["a", "b", "sub-a_ses-1", "sub-a_ses-2", "sub-a_ses-2_acq-1"])
    for cases in (["a_b", "c", "ab"], ["a", "sub-A"]):
        with pytest.raises(ValueError, match="and .* would both be sub-.* in BIDS"):
            ResultFiles(tmp_path, "bids").check_apart(cases)


def test_sources_are_named_by_their_place_in_their_data_set():
    assert (
        bids_source("/data/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii") == "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii"
    )
    assert bids_source("/data/scan of monday.nii") == "scan of monday.nii"
