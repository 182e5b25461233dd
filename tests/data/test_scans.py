"""Scans are found in every layout and list, and what is wrong with them, or unclear, is told by name."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import make_scan, write_nifti
from scripts.data.scans import find_scans


def touch(root, *names, value=1):
    """Volumes (3, 4, 5) by their names below a folder."""
    return [write_nifti(root / name, np.full((3, 4, 5), value, np.uint8)) for name in names]


def cases(scans):
    return [scan["case"] for scan in scans]


def below(scans, root):
    """The scans by case, with their files relative to the folder."""
    short = json.dumps(scans).replace(f"{root}/", "")
    return {scan.pop("case"): scan for scan in json.loads(short)}


def told(capsys):
    """What was left out, to its reason."""
    lines = capsys.readouterr().out.splitlines()
    return {line.split(":")[0].strip(): line.partition(": ")[2] for line in lines[1:]}


# Folders


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_finds_the_files_of_each_scan_in_the_order_of_the_modalities(tmp_path, suffix):
    folder = make_scan(tmp_path / "elsewhere", "one", lesion={}, suffix=suffix)
    make_scan(tmp_path / "scans", "two", suffix=suffix)
    (tmp_path / "scans/unrelated").mkdir()
    (tmp_path / "scans/.hidden").mkdir()
    (tmp_path / "scans/one").symlink_to(folder)
    first, second = find_scans(tmp_path / "scans", ["t1", "flair"], label="seg")
    assert first == {
        "case": "one",
        "image": [str(tmp_path / f"scans/one/one_{modality}{suffix}") for modality in ("t1", "flair")],
        "label": str(tmp_path / f"scans/one/one_seg{suffix}"),
    }
    assert second["case"] == "two" and "label" not in second


def test_loose_files_are_scans_by_their_names(tmp_path, capsys):
    names = ["A_flair.nii.gz", "A_T1w.nii.gz", "A_seg.nii.gz", "A_mask.mgz", "B_FLAIR.nii", "C.1.nii", "D_adc.nii"]
    touch(tmp_path, *names, "E.nii.gz", "E_seg.nii.gz", "._E.nii.gz")
    (tmp_path / "notes.docx").touch()
    found = below(find_scans(tmp_path, ["flair"], label="seg"), tmp_path)
    assert found == {
        "A": {"image": ["A_flair.nii.gz"], "label": "A_seg.nii.gz"},
        "B": {"image": ["B_FLAIR.nii"]},
        "C.1": {"image": ["C.1.nii"]},
        "E": {"image": ["E.nii.gz"], "label": "E_seg.nii.gz"},
    }
    reasons = told(capsys)
    assert (
        reasons["A_T1w.nii.gz"]
        == reasons["D_adc.nii"].replace("adc", "T1w")
        == "_T1w is the ending of another modality"
    )
    assert reasons["notes.docx"] == "no NIfTI file" and reasons["._E.nii.gz"] == "hidden"
    found = below(find_scans(tmp_path, ["flair", "t1"], label="seg", brain_mask="mask", split=["A"]), tmp_path)
    files = {"image": ["A_flair.nii.gz", "A_T1w.nii.gz"], "label": "A_seg.nii.gz", "brain_mask": "A_mask.mgz"}
    assert found == {"A": files}


def test_label_of_a_loose_scan_may_bear_the_name_of_its_file_and_two_are_refused(tmp_path):
    touch(tmp_path, "P_flair.nii.gz", "P_flair_seg.nii", "Q_flair.nii.gz", "Q_flair_seg.nii.gz", "Q_seg.nii.gz")
    first, second = find_scans(tmp_path, ["flair"], label="seg")
    assert first["label"] == f"{tmp_path}/P_flair_seg.nii"
    assert second["error"].startswith(f"{tmp_path}/Q_flair_seg.nii.gz and {tmp_path}/Q_seg.nii.gz are there for the")


def test_long_lists_of_what_is_left_out_are_cut(tmp_path, capsys):
    make_scan(tmp_path, "A")
    for number in range(15):
        (tmp_path / f"empty{number}").mkdir()
    find_scans(tmp_path, ["flair"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 scan found, 15 left out:") and len(lines) == 12 and lines[-1] == "  and 5 more"


@pytest.mark.parametrize("role", ["flair", "seg", "mask"])
def test_two_files_for_one_thing_are_an_error_of_their_scan(tmp_path, role):
    for case in "ab":
        folder = make_scan(tmp_path, case, lesion={}, modalities=["flair"])
        write_nifti(folder / f"{case}_mask.nii.gz", np.ones((14, 18, 12), np.uint8))
    (tmp_path / f"a/a_{role}.nii").write_bytes((tmp_path / "a/a_flair.nii.gz").read_bytes())
    first, second = find_scans(tmp_path, ["flair"], label="seg", brain_mask="mask")
    assert "error" not in second
    assert first["error"].startswith(
        f"{tmp_path}/a/a_{role}.nii.gz and {tmp_path}/a/a_{role}.nii are there for the same"
    )


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        (("Case.nii", "case.nii"), "Case and case, which some file systems take for one"),
        (("caf\u00e9.nii", "cafe\u0301.nii"), "which some file systems take for one"),
        (("P_flair.nii.gz", "P.nii.gz"), "P twice"),
        (("P/P_flair.nii.gz", "P.nii.gz"), "P twice"),
        (("P.nii", "P.nii.gz"), "P twice"),
    ],
)
def test_two_scans_of_one_name_are_refused(tmp_path, names, twice):
    touch(tmp_path, *names)
    if len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1:
        pytest.skip(f"needs a file system that tells {names[0]!r} from {names[1]!r}; that of {tmp_path} does not")
    with pytest.raises(ValueError, match=f"holds .*{twice}"):
        find_scans(tmp_path, ["flair"])


@pytest.mark.parametrize(
    ("names", "modalities", "message"),
    [
        ([], ["flair"], "No scan in .*NAME_flair.nii.gz, or BIDS.*MSLesSeg and of the WMH challenge, in a datalist"),
        (["P1/T1/P1_T1_FLAIR.nii.gz"], ["flair"], "P1 has no flair: .*in a datalist"),
        (["a/a_t1.nii"], ["flair"], "a has no flair: expected a_flair.nii.gz in .*/a; check `dataset_dir` and"),
        (["a.nii.gz"], ["flair", "t1"], "No scan in"),
        (["sub-1/anat/sub-1_T2w.nii"], ["flair"], "sub-1 has no flair: expected sub-1_FLAIR.nii.gz in .*/sub-1/anat"),
    ],
)
def test_folder_without_a_scan(tmp_path, names, modalities, message):
    touch(tmp_path, *names)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_scans(tmp_path, modalities)


def test_dicom_is_told_of_its_converter(tmp_path):
    series = tmp_path / "scans" / "series"
    series.mkdir(parents=True)
    (series / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(99))
    for options in ({"image": str(series / "IM0001")}, {"image": str(series)}, {}):
        with pytest.raises(ValueError, match="DICOM.*: convert .* by dcm2niix"):
            find_scans(tmp_path / "scans", ["flair"], **options)


def test_missing_folder_and_options_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder .*gone"):
        find_scans(tmp_path / "gone", ["flair"])
    for modalities in ("flair", [], None):
        with pytest.raises(ValueError, match="`modalities` must be a list of names"):
            find_scans(tmp_path, modalities)


@pytest.mark.parametrize("target", ["../.git/annex/objects/a1/b2/SHA256-s9.nii.gz", "nothing"])
def test_link_without_content_is_told_how_to_get_it(tmp_path, target):
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz", "P/P_flair.nii.gz", "P/P_seg.nii.gz")
    link = tmp_path / "sub-2/anat/sub-2_FLAIR.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    good, bad = find_scans(tmp_path, ["flair"], split=["sub-1", "sub-2"])
    assert "error" not in good and bad["error"].startswith(f"{link} is a link whose content is not there: run `datalad")
    (tmp_path / "P/P_seg.nii.gz").unlink()
    (tmp_path / "P/P_seg.nii.gz").symlink_to(target)
    with pytest.raises(FileNotFoundError, match="P_seg.nii.gz is a link whose content is not there"):
        find_scans(tmp_path, ["flair"], split=["P"], label="seg")


@pytest.mark.parametrize(
    "content", [b"/annex/objects/MD5E-s9--00.nii.gz\n", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_pointer_to_content_is_told_how_to_get_it(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="only names its content, which is not there: run `datalad get`"):
        find_scans(tmp_path, ["flair"])


# BIDS


@pytest.fixture
def bids(tmp_path):
    """Two subjects, the second seen in three sessions, with masks of two pipelines, and what such data sets have."""
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


def test_bids_gives_a_case_for_each_image_with_its_masks(bids, capsys):
    found = below(find_scans(bids, ["flair", "t1"], label="seg", brain_mask="mask"), bids)
    first, second = "sub-02/ses-a/anat/sub-02_ses-a", "sub-02/ses-b/anat/sub-02_ses-b"
    assert found == {
        "sub-01": {
            "image": ["sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz"],
            "label": "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
            "brain_mask": "derivatives/brains/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        },
        "sub-02_ses-a_acq-3d": {
            "image": [f"{first}_acq-3d_FLAIR.nii", f"{first}_T1w.nii"],
            "label": f"derivatives/lesions/{first}_space-orig_label-lesion_mask.nii.gz",
            "brain_mask": f"derivatives/brains/{first}_desc-brain_mask.nii.gz",
        },
        "sub-02_ses-b": {
            "image": [f"{second}_FLAIR.nii.gz", f"{second}_run-1_T1w.nii.gz"],
            "brain_mask": f"derivatives/brains/{second}_desc-brain_mask.nii.gz",
        },
    }
    assert capsys.readouterr().out.splitlines() == [
        f"{bids}: 3 scans found, 3 left out:",
        "  derivatives: no folder of a subject (sub-...)",
        "  README: no NIfTI file",
        f"  sub-02_ses-c has no flair: expected sub-02_ses-c_FLAIR.nii.gz in {bids}/sub-02/ses-c/anat",
    ]


def test_images_of_several_acquisitions_are_scans_of_their_own(bids):
    folder = bids / "sub-02/ses-a/anat"
    touch(folder, "sub-02_ses-a_acq-2d_FLAIR.nii.gz", "sub-02_ses-a_acq-2d_label-lesion_mask.nii.gz")
    touch(bids, "derivatives/other/sub-02/ses-a/anat/sub-02_ses-a_acq-3d_desc-brain_mask.nii.gz")
    both = below(find_scans(bids, ["flair"], split=["sub-02_ses-a"], label="seg", brain_mask="mask"), bids)
    assert [*both] == ["sub-02_ses-a_acq-2d", "sub-02_ses-a_acq-3d"]
    assert both["sub-02_ses-a_acq-2d"]["label"].endswith("anat/sub-02_ses-a_acq-2d_label-lesion_mask.nii.gz")
    assert both["sub-02_ses-a_acq-3d"]["label"].endswith("_space-orig_label-lesion_mask.nii.gz")
    masks = [both[case]["brain_mask"].split("/")[1] for case in both]
    assert masks == ["brains", "other"]  # each is the one whose name says most of the scan's
    assert cases(find_scans(bids, ["flair"], split=["sub-02"], exclude=["sub-02_ses-a_acq-2d"])) == [
        "sub-02_ses-a_acq-3d",
        "sub-02_ses-b",
    ]
    (alone,) = find_scans("", ["flair"], image=str(folder / "sub-02_ses-a_acq-3d_FLAIR.nii"))
    assert alone["case"] == "sub-02_ses-a_acq-3d"


def test_masks_of_several_pipelines_are_chosen_by_name_but_never_our_own_results(bids):
    touch(bids, "derivatives/ours/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    (bids / "derivatives/ours/sub-01/anat/sub-01_desc-anomaly_mask.json").write_text("{}")
    (found,) = find_scans(bids, ["flair"], split=["sub-01"], brain_mask="mask")
    assert found["brain_mask"].startswith(f"{bids}/derivatives/brains/")
    touch(bids, "derivatives/other/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    first, *others = find_scans(bids, ["flair"], brain_mask="mask")
    assert "brains/sub-01/anat/sub-01_desc-brain_mask.nii.gz and " in first["error"]
    assert others and not any("error" in scan for scan in others)
    for pipeline in ("other", "ours"):
        (found,) = find_scans(bids, ["flair"], split=["sub-01"], brain_mask=f"{pipeline}/desc-brain_mask")
        assert found["brain_mask"] == f"{bids}/derivatives/{pipeline}/sub-01/anat/sub-01_desc-brain_mask.nii.gz"


def test_contrast_agent_is_taken_where_it_is_named(bids):
    assert cases(find_scans(bids, ["t1"], split=["sub-01"])) == ["sub-01"]
    (exact,) = find_scans(bids, ["ce-gadolinium_T1w"], split=["sub-01"])
    assert exact["image"] == [f"{bids}/sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"]


def test_derivative_with_its_own_masks_and_subjects_that_are_no_bids(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_desc-preproc_FLAIR.nii.gz", "sub-1/anat/sub-1_label-lesion_mask.nii.gz")
    assert below(find_scans(tmp_path, ["flair"], label="seg"), tmp_path) == {
        "sub-1_desc-preproc": {
            "image": ["sub-1/anat/sub-1_desc-preproc_FLAIR.nii.gz"],
            "label": "sub-1/anat/sub-1_label-lesion_mask.nii.gz",
        }
    }
    touch(tmp_path / "plain", "sub-2/sub-2_flair.nii.gz", "sub-2/sub-2_seg.nii.gz")
    files = {"image": ["plain/sub-2/sub-2_flair.nii.gz"], "label": "plain/sub-2/sub-2_seg.nii.gz"}
    assert below(find_scans(tmp_path / "plain", ["flair"], label="seg"), tmp_path) == {"sub-2": files}


# Splits, and what is excluded


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_split_fixes_cases_and_order_in_a_file_of_any_editor(scans_dir, encoding):
    (scans_dir / "split.txt").write_bytes("# order matters\r\n\r\n d \r\na  # comment\r\n".encode(encoding))
    assert cases(find_scans(scans_dir, ["flair"], split=str(scans_dir / "split.txt"))) == ["d", "a"]
    assert cases(find_scans(scans_dir, ["flair"], split=["e", "b"])) == ["e", "b"]
    assert cases(find_scans(scans_dir, ["flair"])) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("names", "expected", "others"),
    [
        (["sub-02"], ["sub-02_ses-a_acq-3d", "sub-02_ses-b"], ["sub-01"]),
        (["sub-02_ses-b", "sub-01"], ["sub-02_ses-b", "sub-01"], ["sub-02_ses-a_acq-3d"]),
    ],
)
def test_lists_name_subjects_or_sessions(bids, names, expected, others):
    assert cases(find_scans(bids, ["flair"], split=names)) == expected
    assert cases(find_scans(bids, ["flair"], exclude=names)) == others


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../../etc/passwd"], "names '../../etc/passwd', which is outside"),
        (["a/../../scans/a"], "which is outside"),
        (["/etc/passwd"], "names '/etc/passwd', which is outside"),
        (["."], "which is outside"),
        (["nobody"], "names nobody, but /.*/scans has no scan of that name"),
        (["a", "b", "a"], "names a twice"),
        (["a", "a/"], "holds a twice"),
        ([], "names no case"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_bad_split(scans_dir, names, message, as_file):
    split = names
    if as_file:
        split = str(scans_dir / "bad.txt")
        (scans_dir / "bad.txt").write_text("\n".join(names) + "\n# nothing else\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_scans(scans_dir, ["flair"], split=split)


def test_what_a_named_scan_lacks_is_its_error_and_can_be_excluded(scans_dir):
    (scans_dir / "c" / "c_flair.nii.gz").unlink()
    good, bad = find_scans(scans_dir, ["flair"], split=["a", "c"])
    assert "error" not in good and bad["error"].startswith("c has no flair: expected c_flair.nii.gz")
    assert cases(find_scans(scans_dir, ["flair"], split=["a", "c"], exclude=["c"])) == ["a"]
    assert cases(find_scans(scans_dir, ["flair"], exclude=["c", "d"])) == ["a", "b", "e"]
    with pytest.raises(FileNotFoundError, match="a has no brain mask: expected a_brain.nii.gz"):
        find_scans(scans_dir, ["t1"], brain_mask="brain")


def test_excluded_names_are_those_of_scans_and_leave_one(scans_dir):
    (scans_dir / "exclude.txt").write_bytes(b"\xef\xbb\xbfb \r\n\r\nd\t# damaged\r\n")
    exclude = str(scans_dir / "exclude.txt")
    assert cases(find_scans(scans_dir, ["flair"], split=["d", "a", "b"], exclude=exclude)) == ["a"]
    with pytest.raises(ValueError, match="`exclude` names nobody, but .* has no case of that name"):
        find_scans(scans_dir, ["flair"], exclude=["nobody"])
    with pytest.raises(ValueError, match="`exclude` names every case"):
        find_scans(scans_dir, ["flair"], split=["b", "d"], exclude=exclude)


# Labels


def test_scan_without_label_is_left_out_or_an_error_or_healthy(scans_dir, capsys):
    for case in "bcde":
        (scans_dir / case / f"{case}_seg.nii.gz").unlink()
    options = {"modalities": ["flair"], "label": "seg"}
    assert cases(find_scans(scans_dir, **options, unlabeled_are_healthy=False)) == ["a"]
    assert "left out (`unlabeled_are_healthy` takes them as healthy): 4\n  b\n" in capsys.readouterr().out
    found = find_scans(scans_dir, **options, unlabeled_are_healthy=True)
    assert cases(found) == [*"abcde"] and "label" not in found[1]
    assert "Without a label (CASE_seg.nii.gz), taken as healthy: 4\n  b\n" in capsys.readouterr().out
    first, second = find_scans(scans_dir, **options, split=["a", "b"], unlabeled_are_healthy=False)
    assert "error" not in first and second["error"].startswith("b has no label: expected b_seg.nii.gz")
    with pytest.raises(FileNotFoundError, match="b has no label"):
        find_scans(scans_dir, **options, split=["b"], unlabeled_are_healthy=False)


# Lists of files


def write_datalist(folder, **lists):
    (folder / "dataset.json").write_text(json.dumps({"description": "made", **lists}))
    return str(folder / "dataset.json")


def test_datalist_lists_scans_relative_to_itself(scans_dir):
    entry = {"image": ["a/a_flair.nii.gz", "a/a_t1.nii.gz"], "label": "a/a_seg.nii.gz", "case": "first"}
    path = write_datalist(scans_dir, training=[entry], test=[{"image": ["b/b_flair.nii.gz", "b/b_t1.nii.gz"]}])
    found = below(find_scans(path, ["flair", "t1"], split="training"), scans_dir)
    assert found == {"first": {"image": entry["image"], "label": entry["label"]}}
    assert cases(find_scans(path, ["flair", "t1"])) == ["first", "b"]
    with pytest.raises(ValueError, match="has no list 'testing', only training, test"):
        find_scans(path, ["flair", "t1"], split="testing")


def test_list_of_objects_is_one_too_as_monai_label_gives_it(scans_dir):
    entries = [{"image": str(scans_dir / f"{case}/{case}_flair.nii.gz"), "label": ""} for case in "ab"]
    assert cases(find_scans(entries, ["flair"])) == ["a", "b"]
    with pytest.raises(ValueError, match="The list of scans lists 1 image files for a case, but `modalities` has 2"):
        find_scans(entries, ["flair", "t1"])


def test_datalist_of_the_decathlon(tmp_path):
    content = {"name": "Brains", "reference": ["A", "B"], "modality": {"0": "FLAIR"}, "labels": {"0": "background"}}
    content |= {"numTraining": 1, "numTest": 2, "tensorImageSize": "3D"}
    content["training"] = [{"image": "./imagesTr/a.1_x.nii.gz", "label": "./labelsTr/a.1_x.nii.gz"}]
    content["test"] = ["./imagesTs/b.nii.gz", "./imagesTs/c.nii"]
    touch(tmp_path, "imagesTr/a.1_x.nii.gz", "labelsTr/a.1_x.nii.gz", "imagesTs/b.nii.gz", "imagesTs/c.nii")
    path = write_datalist(tmp_path, **content)
    assert below(find_scans(path, ["flair"]), tmp_path) == {
        "a.1_x": {"image": ["imagesTr/a.1_x.nii.gz"], "label": "labelsTr/a.1_x.nii.gz"},
        "b": {"image": ["imagesTs/b.nii.gz"]},
        "c": {"image": ["imagesTs/c.nii"]},
    }
    assert cases(find_scans(path, ["flair"], split="test", exclude=["c"])) == ["b"]
    with pytest.raises(ValueError, match="has no list 'reference', only training, test"):
        find_scans(path, ["flair"], split="reference")


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_datalist_that_tells_another_order_of_modalities(tmp_path, key):
    names = {"0": "T2", "1": "FLAIR"}
    path = write_datalist(tmp_path, training=[{"image": ["a_flair.nii", "a_t2.nii"]}], **{key: names})
    with pytest.raises(ValueError, match="tells the modalities t2, flair, but `modalities` is flair, t2"):
        find_scans(path, ["flair", "t2"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "lists no case"),
        ([{"label": "x.nii"}], "entry without `image`"),
        ([{"image": "a.nii"}, {"image": "a.nii"}], "holds a twice"),
        ([{"image": ["a.nii", "b.nii"]}], "lists 2 image files for a case, but `modalities` has 1"),
        ([{"image": "../a.nii"}], "names '../a.nii', which is outside"),
        ([{"image": "/etc/passwd"}], "names '/etc/passwd', which is outside"),
        ([{"image": "a.nii", "case": "../../a"}], "has the case name '../../a'"),
        *(
            ([{"image": "a.nii", "case": name}], "has the case name .{1,210}: use one line of text")
            for name in ("a/b", ".hidden", "..", "two\nlines", 5.5, ["a"], "x" * 300)
        ),
    ],
)
def test_bad_datalist(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        find_scans(write_datalist(tmp_path, training=entries), ["flair"], split="training")


def test_datalist_that_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="No datalist .*gone.json"):
        find_scans(tmp_path / "gone.json", ["flair"])
    for content in ("{", "[" * 100_000):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ValueError, match="broken.json is no JSON .*: give a Decathlon-style datalist"):
            find_scans(tmp_path / "broken.json", ["flair"])


# One scan


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("a_t1.nii.gz", "a_t1.nii.gz is taken for no flair scan, since _t1 is the ending of another modality"),
        ("a_seg.nii", "a_seg.nii is taken for no flair scan, since _seg is the ending of masks"),
        (["a.nii", "b.nii"], "has 2 files, but the model takes 1 modalities"),
    ],
)
def test_one_scan_that_is_none(image, message):
    with pytest.raises(ValueError, match=message):
        find_scans("", ["flair"], image=image)


def test_missing_brain_mask_of_one_scan(tmp_path):
    (path,) = touch(tmp_path, "a.nii")
    with pytest.raises(FileNotFoundError, match="No file mask: .* give files as `image` and `brain_mask`"):
        find_scans("", ["flair"], image=str(path), brain_mask="mask")


# What headers tell


def pair_of(tmp_path, key, shape=(5, 6, 7), affine=None):
    image = write_nifti(tmp_path / "image.nii", np.zeros((5, 6, 7), np.uint8))
    other = write_nifti(tmp_path / "other.nii", np.zeros(shape, np.uint8), affine)
    return [{"case": "one", "image": str(image), key: str(other)}]


@pytest.mark.parametrize("key", ["label", "brain_mask"])
def test_files_of_a_scan_that_do_not_fit(tmp_path, key):
    with pytest.raises(ValueError, match=r"other.nii has shape \(5, 6, 6\), but .*image.nii has \(5, 6, 7\)"):
        find_scans(pair_of(tmp_path, key, (5, 6, 6)), ["flair"])
    for affine in (np.diag([-1.0, 1, 1, 1]), np.diag([1, 1, 1.1, 1])):
        with pytest.raises(ValueError, match="other.nii has another affine than .*image.nii"):
            find_scans(pair_of(tmp_path, key, affine=affine), ["flair"])
    find_scans(pair_of(tmp_path, key, affine=np.eye(4) + 1e-5), ["flair"])


def test_scans_that_cannot_be_used_are_marked(tmp_path):
    touch(tmp_path, "good.nii")
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    bad, good = find_scans(tmp_path, ["flair"])
    assert "error" not in good and "bad.nii is not a NIfTI file that can be read" in bad["error"]
    with pytest.raises(ValueError, match="bad.nii is not a NIfTI file"):
        find_scans(tmp_path, ["flair"], exclude=["good"])


def test_slice_range_is_counted_along_the_axial_axis(tmp_path):
    axial_second = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    assert nib.aff2axcodes(axial_second) == ("P", "I", "R")
    write_nifti(tmp_path / "a.nii", np.zeros((5, 6, 7)), axial_second)
    find_scans(tmp_path, ["flair"], slice_range=[0, 6])
    with pytest.raises(ValueError, match=r"has 6 axial slices, so `slice_range` \[0, 7\] leaves it"):
        find_scans(tmp_path, ["flair"], slice_range=[0, 7])


def test_forms_that_lie_apart_are_told_with_the_case(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 2
    image.set_sform(np.eye(4), 1), image.set_qform(moved, 1)
    nib.save(image, tmp_path / "one.nii")
    (scan,) = find_scans(tmp_path, ["flair"])
    (sentence,) = scan["warnings"]
    assert sentence.startswith("one: qform and sform of") and "lie up to 2 mm apart" in sentence
