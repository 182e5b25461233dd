"""Files are known for what they are in every convention, and what is unclear is told by name."""

import json

import numpy as np
import pytest
from conftest import write_nifti
from scripts.data.layouts import case_of
from scripts.data.scans import find_subjects
from scripts.evaluation.labeled import find_labeled
from scripts.inference.volumes import find_inputs


def touch(root, *names):
    """Volumes (3, 4, 5) of ones by their names below a folder."""
    return [write_nifti(root / name, np.ones((3, 4, 5), np.uint8)) for name in names]


@pytest.fixture
def bids(tmp_path):
    """Two persons, the second seen in three sessions, with masks of two pipelines, and what such data sets have."""
    root = tmp_path / "bids"
    touch(
        root,
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-3d_FLAIR.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
        "sub-02/ses-c/anat/sub-02_ses-c_T1w.nii.gz",
        "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        "derivatives/lesions/sub-02/ses-a/anat/sub-02_ses-a_space-orig_label-lesion_mask.nii.gz",
        "derivatives/brains/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/brains/sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz",
        "derivatives/brains/sub-02/ses-b/anat/sub-02_ses-b_desc-brain_mask.nii.gz",
    )
    for name in ("dataset_description.json", "participants.tsv", "README"):
        (root / name).write_text("{}")
    return root


def cases(subjects):
    return [subject["case"] for subject in subjects]


def below(subjects, root):
    """The subjects, with their files relative to the folder."""
    short = json.dumps(subjects).replace(f"{root}/", "")
    return {subject.pop("case"): subject for subject in json.loads(short)}


def test_bids_gives_a_case_for_each_session_with_its_masks(bids, capsys):
    found = below(find_subjects(bids, ["t1", "flair"], brain_mask="mask"), bids)
    folder, made = "sub-02/ses-a/anat/sub-02_ses-a", "sub-02/ses-a/anat/sub-02_ses-a"
    assert found == {
        "sub-01": {
            "image": ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz"],
            "label": "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
            "brain_mask": "derivatives/brains/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        },
        "sub-02_ses-a": {
            "image": [f"{folder}_T1w.nii", f"{folder}_acq-3d_FLAIR.nii"],
            "label": f"derivatives/lesions/{made}_space-orig_label-lesion_mask.nii.gz",
            "brain_mask": f"derivatives/brains/{made}_desc-brain_mask.nii.gz",
        },
        "sub-02_ses-b": {
            "image": [
                "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
                "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii.gz",
            ],
            "brain_mask": "derivatives/brains/sub-02/ses-b/anat/sub-02_ses-b_desc-brain_mask.nii.gz",
        },
    }
    assert capsys.readouterr().out.splitlines() == [
        f"{bids}: 3 scans found, 3 left out:",
        "  derivatives: no folder of a subject (sub-...)",
        f"  sub-02_ses-c has no flair: expected sub-02_ses-c_FLAIR.nii.gz in {bids}/sub-02/ses-c/anat",
        "  README: no NIfTI file",
    ]


def test_bids_is_the_same_to_every_step(bids):
    assert cases(find_inputs(str(bids), ["flair"])) == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert cases(find_labeled(str(bids), ["flair"])) == ["sub-01", "sub-02_ses-a"]
    everyone = find_labeled(str(bids), ["flair"], unlabeled_are_healthy=True)
    assert [case["case"] for case in everyone] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]


@pytest.mark.parametrize(
    ("names", "expected", "others"),
    [
        (["sub-02"], ["sub-02_ses-a", "sub-02_ses-b"], ["sub-01"]),
        (["sub-02_ses-b", "sub-01"], ["sub-02_ses-b", "sub-01"], ["sub-02_ses-a"]),
    ],
)
def test_lists_name_persons_or_sessions(bids, names, expected, others):
    assert cases(find_subjects(bids, ["flair"], names)) == expected
    assert cases(find_subjects(bids, ["flair"], exclude=names)) == others


def test_what_a_bids_folder_lacks_is_told_in_its_words(bids):
    with pytest.raises(FileNotFoundError, match="sub-01 has no t2: expected sub-01_T2w.nii.gz in .*/sub-01/anat"):
        find_subjects(bids, ["t2"])
    with pytest.raises(FileNotFoundError, match="names sub-03, but .*bids has no folder of that name"):
        find_subjects(bids, ["flair"], ["sub-03"])
    with pytest.raises(FileNotFoundError, match="names sub-02_ses-d, but .*bids has no folder of that name"):
        find_subjects(bids, ["flair"], ["sub-02_ses-d"])
    with pytest.raises(FileNotFoundError, match="sub-02_ses-c has no flair"):
        find_subjects(bids, ["flair"], ["sub-02_ses-c"])


def test_what_may_be_two_files_is_left_to_the_user(bids):
    touch(bids, "derivatives/other/sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_T1w.mgz")
    touch(bids, "sub-02/ses-a/anat/sub-02_ses-a_acq-2d_FLAIR.nii.gz")
    found = {case["case"]: case for case in find_subjects(bids, ["flair"], brain_mask="mask")}
    assert found["sub-01"]["error"] == (
        f"{bids}/derivatives/brains/sub-01/anat/sub-01_desc-brain_mask.nii.gz and {bids}/derivatives/other/sub-01/anat/"
        "sub-01_desc-brain_mask.nii.gz are there for the same thing: keep one of them."
    )
    assert "acq-2d_FLAIR.nii.gz and " in found["sub-02_ses-a"]["error"] and "error" not in found["sub-02_ses-b"]
    (only,) = find_subjects(bids, ["flair"], ["sub-01"], brain_mask="other/desc-brain_mask")
    assert only["brain_mask"] == f"{bids}/derivatives/other/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    (exact,) = find_subjects(bids, ["ce-gadolinium_T1w"], ["sub-01"])
    assert exact["image"] == [f"{bids}/sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"]


def test_derivative_with_its_own_masks_and_subjects_that_are_no_bids(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_desc-preproc_FLAIR.nii.gz", "sub-1/anat/sub-1_label-lesion_mask.nii.gz")
    touch(tmp_path, "sub-2/sub-2_flair.nii.gz", "sub-2/sub-2_seg.nii.gz")
    first, second = find_subjects(tmp_path, ["flair"])
    assert first["label"].endswith("/sub-1/anat/sub-1_label-lesion_mask.nii.gz")
    assert second == {
        "case": "sub-2",
        "image": [f"{tmp_path}/sub-2/sub-2_flair.nii.gz"],
        "label": f"{tmp_path}/sub-2/sub-2_seg.nii.gz",
    }


def test_loose_files_of_several_modalities_belong_together_by_name(tmp_path, capsys):
    touch(tmp_path, "A_flair.nii.gz", "A_T1w.nii.gz", "A_seg.nii.gz", "A_mask.mgz", "B_flair.nii", "C.nii", "D_adc.nii")
    (found,) = find_subjects(tmp_path, ["flair", "t1"], brain_mask="mask")
    assert found == {
        "case": "A",
        "image": [f"{tmp_path}/A_flair.nii.gz", f"{tmp_path}/A_T1w.nii.gz"],
        "label": f"{tmp_path}/A_seg.nii.gz",
        "brain_mask": f"{tmp_path}/A_mask.mgz",
    }
    assert {line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]} == {
        "B has no t1",
        "C.nii",
        "D_adc.nii",
    }
    assert find_subjects(tmp_path, ["flair", "t1"], ["A"]) == [{k: found[k] for k in ("case", "image", "label")}]


def test_loose_file_of_another_modality_is_no_scan_of_this_one(tmp_path, capsys):
    touch(tmp_path, "A_FLAIR.nii.gz", "A_t1.nii.gz", "B_dwi.nii.gz", "C.nii.gz")
    assert cases(find_subjects(tmp_path, ["flair"])) == ["A", "C"]
    assert "A_t1.nii.gz: _t1 is the ending of another modality" in capsys.readouterr().out
    assert cases(find_subjects(tmp_path, ["flair"], ["C", "A"])) == ["C", "A"]
    (alone,) = find_subjects(tmp_path, ["t1"], ["A"])
    assert alone["image"] == [f"{tmp_path}/A_t1.nii.gz"]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("P_flair.nii.gz", "P"),
        ("P_FLAIR.nrrd", "P"),
        ("sub-01_ses-1_T1w.mha", "sub-01_ses-1"),
        ("P_t1ce.nii", "P_t1ce"),
        ("flair.nii.gz", "flair"),
        ("1.2.840.mgz", "1.2.840"),
    ],
)
def test_case_of_a_file(name, case):
    assert case_of(f"/scans/{name}", ["flair", "t1"]) == case


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_every_editor(bids, encoding):
    (bids / "list.txt").write_bytes("sub-02_ses-b \r\n\r\nsub-01\t\r\n  \r\n".encode(encoding))
    assert cases(find_subjects(bids, ["flair"], str(bids / "list.txt"))) == [
        "sub-02_ses-b",
        "sub-01",
    ]
    content = json.dumps({"testing": [{"image": "sub-01/anat/sub-01_FLAIR.nii.gz"}]})
    (bids / "list.json").write_bytes(content.encode(encoding))
    assert cases(find_subjects(bids / "list.json", ["flair"])) == ["sub-01"]
