"""Names of files, scans and subjects, in each convention."""

import pytest
from scripts.data.layouts import case_of, names_of, subject_of


@pytest.mark.parametrize(
    ("file", "case", "subject"),
    [
        ("P_flair.nii.gz", "P", "P"),
        ("P_FLAIR.nii", "P", "P"),
        ("P_ses-2_flair.nii.gz", "P_ses-2", "P"),
        ("sub-01_ses-1_acq-3d_FLAIR.nii.gz", "sub-01_ses-1_acq-3d", "sub-01"),
        ("flair.nii.gz", "flair", "flair"),
        ("1.2.840.mgz", "1.2.840", "1.2.840"),
    ],
)
def test_scan_and_subject_of_a_file(file, case, subject):
    assert case_of(file, ["flair"]) == case and subject_of(case) == subject


def test_lists_may_name_a_scan_its_session_or_its_subject():
    assert names_of("sub-01_ses-1_acq-3d") == {"sub-01", "sub-01_ses-1", "sub-01_ses-1_acq-3d"}
    assert names_of("P_1") == {"P_1"} and names_of("P_ses-2") == {"P_ses-2", "P"}
