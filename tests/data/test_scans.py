"""Scans and slices are found in every layout, and refused with one sentence that says what is wrong."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import make_scan, write_nifti
from scripts.data.scans import check_subjects, find_subjects, mark_unusable
from scripts.inference.volumes import find_inputs


def cases(subjects):
    return [subject["case"] for subject in subjects]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_finds_the_files_of_each_scan_in_the_order_of_the_modalities(tmp_path, suffix):
    folder = make_scan(tmp_path, "one", lesion={}, suffix=suffix)
    make_scan(tmp_path, "two", suffix=suffix)
    (tmp_path / "unrelated").mkdir()
    (tmp_path / ".hidden").mkdir()
    first, second = find_subjects(tmp_path, ["t1", "flair"])
    assert first == {
        "case": "one",
        "image": [str(folder / f"one_{modality}{suffix}") for modality in ("t1", "flair")],
        "label": str(folder / f"one_seg{suffix}"),
    }
    assert second["case"] == "two" and "label" not in second


def test_split_file_fixes_cases_and_order(scans_dir):
    split = scans_dir / "split.txt"
    split.write_text("\ufeff# order matters\n\n d \na  # comment\n", encoding="utf-8")
    assert cases(find_subjects(scans_dir, ["flair"], str(split))) == ["d", "a"]
    assert cases(find_subjects(scans_dir, ["flair"], ["e", "b"])) == ["e", "b"]
    assert cases(find_subjects(scans_dir, ["flair"])) == ["a", "b", "c", "d", "e"]


def test_linked_scans_are_inside_the_folder(tmp_path):
    make_scan(tmp_path / "elsewhere", "a")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    assert cases(find_subjects(tmp_path / "scans", ["flair"], ["a"])) == ["a"]


def test_flat_folder_is_one_scan_a_file(tmp_path):
    for name in ("b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt"):
        write_nifti(tmp_path / name, np.ones((3, 4, 5), np.uint8)) if "nii" in name else (tmp_path / name).touch()
    assert find_subjects(tmp_path, ["flair"]) == [
        {"case": "a", "image": [str(tmp_path / "a.nii.gz")]},
        {"case": "b", "image": [str(tmp_path / "b.nii")]},
    ]
    with pytest.raises(ValueError, match="No scan in .*expected folders NAME"):
        find_subjects(tmp_path, ["flair", "t1"])
    write_nifti(tmp_path / "a.nii", np.ones((3, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="holds a twice"):
        find_subjects(tmp_path, ["flair"])


def test_what_is_left_out_of_a_folder_is_told_with_its_reason(tmp_path, capsys):
    make_scan(tmp_path, "A", modalities=["flair"])
    make_scan(tmp_path, "B", modalities=["t1"])
    for name in ("D/flair.nii.gz", "E.nii.gz", "a.nii.gz", "F_seg.nii.gz", ".hidden.nii.gz"):
        write_nifti(tmp_path / name, np.ones((3, 4, 5), np.uint8))
    for name in ("notes.docx", "split_training.txt"):
        (tmp_path / name).touch()
    assert cases(find_subjects(tmp_path, ["flair"])) == ["A", "E"]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}: 2 scans found, 6 left out:"
    assert {line.split(":")[0].strip(): line.split(": ")[1] for line in lines} == {
        ".hidden.nii.gz": "hidden",
        "B has no flair": f"expected B_flair.nii.gz in {tmp_path}/B",
        "D has no flair": f"expected D_flair.nii.gz in {tmp_path}/D",
        "F_seg.nii.gz": "_seg is the ending of masks",
        "a.nii.gz": "a folder of this name holds a scan",
        "notes.docx": "no NIfTI file",
    }


@pytest.mark.parametrize("role", ["flair", "seg", "mask"])
def test_two_files_for_one_thing_are_named(tmp_path, role):
    for case in "ab":
        folder = make_scan(tmp_path, case, lesion={}, modalities=["flair"])
        write_nifti(folder / f"{case}_mask.nii.gz", np.ones((14, 18, 12), np.uint8))
    (tmp_path / f"a/a_{role}.nii").write_bytes((tmp_path / "a/a_flair.nii.gz").read_bytes())
    options = {"modalities": ["flair"], "brain_mask": "mask"}
    first, second = mark_unusable(find_subjects(tmp_path, **options))
    assert "error" not in second
    assert first["error"] == (
        f"{tmp_path}/a/a_{role}.nii.gz and {tmp_path}/a/a_{role}.nii are there for the same thing: keep one of them."
    )
    with pytest.raises(ValueError, match="are there for the same thing"):
        find_subjects(tmp_path, split=["a"], **options)


@pytest.mark.parametrize("label", ["P_seg.nii.gz", "P_flair_seg.nii", None])
def test_loose_scan_is_named_and_labeled_as_one_in_a_folder(tmp_path, capsys, label):
    scan = write_nifti(tmp_path / "P_flair.nii.gz", np.ones((3, 4, 5), np.uint8))
    expected = {"case": "P", "image": [str(scan)]}
    if label:
        expected["label"] = str(write_nifti(tmp_path / label, np.ones((3, 4, 5), np.uint8)))
    write_nifti(tmp_path / "Q_seg.nii.gz", np.ones((3, 4, 5), np.uint8))
    assert find_subjects(tmp_path, ["flair"]) == [expected]
    assert "1 scan found, 1 left out:\n  Q_seg.nii.gz: _seg is the ending of masks" in capsys.readouterr().out
    assert find_inputs(str(tmp_path / "nowhere"), ["flair"], image=str(scan))[0]["case"] == "P"
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "P_flair.nii.gz"}]}))
    assert cases(find_subjects(tmp_path / "list.json", ["flair"])) == ["P"]


def test_loose_scan_with_two_labels_is_refused_by_name(tmp_path):
    for name in ("P_flair", "P_seg", "P_flair_seg"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones((3, 4, 5), np.uint8))
    (found,) = find_subjects(tmp_path, ["flair"])
    assert found["error"].startswith(f"{tmp_path}/P_flair_seg.nii.gz and {tmp_path}/P_seg.nii.gz are there for the")
    write_nifti(tmp_path / "P.nii.gz", np.ones((3, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="holds P twice"):
        find_subjects(tmp_path, ["flair"])


def test_long_lists_of_what_is_left_out_are_cut(tmp_path, capsys):
    make_scan(tmp_path, "A")
    for number in range(15):
        (tmp_path / f"empty{number}").mkdir()
    find_subjects(tmp_path, ["flair"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 scan found, 15 left out:") and len(lines) == 12 and lines[-1] == "  and 5 more"


def test_names_keep_their_dots(tmp_path):
    for name in ("1.2.840.3.nii.gz", "1.2.840.7.nii", "x.y/x.y_flair.nii.gz"):
        write_nifti(tmp_path / name, np.ones((3, 4, 5), np.uint8))
    assert cases(find_subjects(tmp_path, ["flair"])) == ["x.y", "1.2.840.3", "1.2.840.7"]


@pytest.mark.parametrize("names", [("Case.nii", "case.nii"), ("caf\u00e9.nii", "cafe\u0301.nii")])
def test_names_that_some_file_systems_take_for_one_are_refused(tmp_path, names):
    for name in names:
        write_nifti(tmp_path / name, np.ones((3, 4, 5), np.uint8))
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip(f"needs a file system that tells {names[0]!r} from {names[1]!r}; that of {tmp_path} does not")
    with pytest.raises(ValueError, match="which some file systems take for one"):
        find_subjects(tmp_path, ["flair"])


@pytest.mark.parametrize("as_file", [True, False])
def test_cases_are_excluded_by_name(scans_dir, as_file):
    exclude = ["b", "d"]
    if as_file:
        (scans_dir / "exclude.txt").write_bytes(b"\xef\xbb\xbfb \r\n\r\nd\t# damaged\r\n")
        exclude = str(scans_dir / "exclude.txt")
    assert cases(find_subjects(scans_dir, ["flair"], exclude=exclude)) == ["a", "c", "e"]
    assert cases(find_subjects(scans_dir, ["flair"], ["d", "a", "b"], exclude=exclude)) == ["a"]
    with pytest.raises(ValueError, match="`exclude` names nobody, but .* has no case of that name"):
        find_subjects(scans_dir, ["flair"], exclude=["nobody"])
    with pytest.raises(ValueError, match="`exclude` names every case"):
        find_subjects(scans_dir, ["flair"], ["b", "d"], exclude=exclude)


def test_scans_that_cannot_be_used_are_marked(tmp_path):
    good, bad = ({"case": name, "image": [str(tmp_path / f"{name}.nii")]} for name in ("good", "bad"))
    write_nifti(tmp_path / "good.nii", np.zeros((5, 6, 7), np.uint8))
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    marked = mark_unusable([good, bad])
    assert marked[0] == good and "bad.nii is not a NIfTI file that can be read" in marked[1]["error"]
    with pytest.raises(ValueError, match="bad.nii is not a NIfTI file"):
        mark_unusable([bad])


def write_datalist(folder, **lists):
    path = folder / "dataset.json"
    path.write_text(json.dumps({"description": "made", **lists}))
    return str(path)


def test_datalist_lists_scans_relative_to_itself(scans_dir):
    entry = {"image": ["a/a_flair.nii.gz", "a/a_t1.nii.gz"], "label": "a/a_seg.nii.gz", "case": "first"}
    path = write_datalist(scans_dir, training=[entry], test=[{"image": ["b/b_flair.nii.gz", "b/b_t1.nii.gz"]}])
    (found,) = find_subjects(path, ["flair", "t1"], "training")
    assert found == {
        "case": "first",
        "image": [str(scans_dir / name) for name in entry["image"]],
        "label": str(scans_dir / "a/a_seg.nii.gz"),
    }
    assert cases(find_subjects(path, ["flair", "t1"])) == ["first", "b"]


def test_datalist_of_the_decathlon(tmp_path):
    content = {"name": "Brains", "reference": ["A", "B"], "modality": {"0": "FLAIR"}, "labels": {"0": "background"}}
    content |= {"numTraining": 1, "numTest": 2, "tensorImageSize": "3D"}
    content["training"] = [{"image": "./imagesTr/a.1_x.nii.gz", "label": "./labelsTr/a.1_x.nii.gz"}]
    content["test"] = ["./imagesTs/b.nii.gz", "./imagesTs/c.nii"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    path = str(tmp_path / "dataset.json")
    assert find_subjects(path, ["flair"]) == [
        {
            "case": "a.1_x",
            "image": [str(tmp_path / "imagesTr/a.1_x.nii.gz")],
            "label": str(tmp_path / "labelsTr/a.1_x.nii.gz"),
        },
        {"case": "b", "image": [str(tmp_path / "imagesTs/b.nii.gz")]},
        {"case": "c", "image": [str(tmp_path / "imagesTs/c.nii")]},
    ]
    assert cases(find_subjects(path, ["flair"], "test", exclude=["c"])) == ["b"]
    with pytest.raises(ValueError, match="has no list 'reference', only training, test"):
        find_subjects(path, ["flair"], "reference")


@pytest.mark.parametrize("key", ["modality", "channel_names"])
@pytest.mark.parametrize("told", [{"0": "T2", "1": "FLAIR"}, {"0": "FLAIR"}])
def test_datalist_that_tells_other_modalities(tmp_path, key, told):
    path = write_datalist(tmp_path, training=[{"image": ["a_flair.nii", "a_t2.nii"]}], **{key: told})
    with pytest.raises(ValueError, match="tells the modalities .*, but `modalities` is flair, t2"):
        find_subjects(path, ["flair", "t2"])


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
        ([{"image": "a.nii", "case": ".."}], "has the case name '..'"),
    ],
)
def test_bad_datalist(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        find_subjects(write_datalist(tmp_path, training=entries), ["flair"], "training")


def test_datalist_that_is_missing_broken_or_has_no_such_list(tmp_path):
    with pytest.raises(ValueError, match="has no list 'testing', only training"):
        find_subjects(write_datalist(tmp_path, training=[{"image": "a.nii"}]), ["flair"], "testing")
    with pytest.raises(FileNotFoundError, match="No datalist .*gone.json"):
        find_subjects(tmp_path / "gone.json", ["flair"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="broken.json is no JSON"):
        find_subjects(tmp_path / "broken.json", ["flair"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../../etc/passwd"], "names '../../etc/passwd', which is outside"),
        (["a/../../scans/a"], "which is outside"),
        (["/etc/passwd"], "names '/etc/passwd', which is outside"),
        (["."], "which is outside"),
        (["nobody"], "names nobody, but .* has no folder of that name"),
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
        find_subjects(scans_dir, ["flair"], split)


@pytest.mark.parametrize("split", [5, True, {"a": 1}])
def test_split_of_another_kind(scans_dir, split):
    with pytest.raises(ValueError, match="A split must be a file, a list of case names, or null"):
        find_subjects(scans_dir, ["flair"], split)


def test_what_a_scan_lacks_is_named(scans_dir):
    with pytest.raises(FileNotFoundError, match="a has no t2: expected a_t2.nii.gz"):
        find_subjects(scans_dir, ["t2"])
    (scans_dir / "c" / "c_flair.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="c has no flair: expected c_flair.nii.gz"):
        find_subjects(scans_dir, ["flair"], ["a", "c"])
    with pytest.raises(FileNotFoundError, match="a has no brain mask: expected a_brain.nii.gz"):
        find_subjects(scans_dir, ["t1"], brain_mask="brain")


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder .*gone"):
        find_subjects(tmp_path / "gone", ["flair"])
    with pytest.raises(ValueError, match="No scan in .*expected folders NAME with files NAME_flair.nii.gz"):
        find_subjects(tmp_path, ["flair"])


@pytest.mark.parametrize("modalities", ["flair", [], None])
def test_modalities_are_a_list(scans_dir, modalities):
    with pytest.raises(ValueError, match="`modalities` must be a list of names"):
        find_subjects(scans_dir, modalities)


def subject_of(tmp_path, **other):
    image = write_nifti(tmp_path / "image.nii", np.zeros((5, 6, 7), np.uint8))
    label = write_nifti(tmp_path / "label.nii", np.zeros(other.get("shape", (5, 6, 7)), np.uint8), other.get("affine"))
    return {"case": "one", "image": [str(image)], other.get("key", "label"): str(label)}


@pytest.mark.parametrize("key", ["label", "brain_mask"])
def test_files_of_a_scan_that_do_not_fit(tmp_path, key):
    with pytest.raises(ValueError, match=r"label.nii has shape \(5, 6, 6\), but .*image.nii has \(5, 6, 7\)"):
        check_subjects([subject_of(tmp_path, key=key, shape=(5, 6, 6))])
    for affine in (np.diag([-1.0, 1, 1, 1]), np.diag([1, 1, 1.1, 1])):
        with pytest.raises(ValueError, match="label.nii has another affine than .*image.nii"):
            check_subjects([subject_of(tmp_path, key=key, affine=affine)])
    check_subjects([subject_of(tmp_path, key=key, affine=np.eye(4) + 1e-5)])


@pytest.mark.parametrize("slice_range", [[5, 5], [6, 2], [-1, 4], [3], 3, [1.5, 3], ["1", "3"], [0, 1, 2]])
def test_slice_range_out_of_order(slice_range):
    with pytest.raises(ValueError, match="`slice_range` must be .first, after the last."):
        check_subjects([], slice_range)


def test_slice_range_is_counted_along_the_axial_axis(tmp_path):
    axial_second = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    assert nib.aff2axcodes(axial_second) == ("P", "I", "R")
    subject = {"case": "one", "image": [str(write_nifti(tmp_path / "a.nii", np.zeros((5, 6, 7)), axial_second))]}
    check_subjects([subject], [0, 6])
    with pytest.raises(ValueError, match=r"has 6 axial slices, so `slice_range` \[0, 7\] leaves it"):
        check_subjects([subject], [0, 7])
    check_subjects([subject])
