"""Single pieces of input that lie or attack, and what a user gets for each: the right result, or one sentence."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_scan, run_bundle, write_nifti
from evaluation.test_report import write_evaluation
from hostile import Segmenter, brain, files_below, outcome
from monai.bundle import download
from scripts.common.model_file import load_model
from scripts.common.outputs import RECORD
from scripts.data.scans import find_scans
from scripts.data.slices import read_slices
from scripts.evaluation.report import write_report
from scripts.tools.release import NAME


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def expected(segmenter, tmp_path_factory):
    """The mask of the plain scan; neither empty nor the whole brain."""
    mask = segmenter.check(save(tmp_path_factory.mktemp("plain"), brain()))
    assert 0 < mask.sum() < (brain() > 0).sum()
    return mask


def save(folder, voxels, affine=None, name="scan.nii", **header):
    """Save an array as NIfTI with some fields of its header changed afterwards, as a faulty program would."""
    path = folder / name
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    content = bytearray(image.to_bytes())
    fields = np.frombuffer(content[:348], nib.Nifti1Header().structarr.dtype).copy()
    for key, value in header.items():
        fields[key] = value
    content[:348] = fields.tobytes()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def spoiled(value):
    voxels = brain(dtype=np.float32)
    voxels[6, 7, 2] = value
    return voxels


def big_endian(folder):
    path = folder / "scan.nii"
    nib.save(nib.Nifti1Image(brain(), np.eye(4), nib.Nifti1Header(endianness=">")), path)
    assert path.read_bytes()[:4] == struct.pack(">i", 348)
    return path


def four_dimensional(folder):
    return save(folder, brain()[..., None])


def shifted(folder):
    """Negative voxels outside the brain, as some reconstructions leave."""
    return save(folder, np.where(brain() > 0, brain(), -1000).astype(np.int16))


SAME_RESULT = {
    "big-endian": big_endian,
    "float64": lambda folder: save(folder, brain(dtype=np.float64)),
    "int32": lambda folder: save(folder, brain(dtype=np.int32)),
    "uint16": lambda folder: save(folder, brain(dtype=np.uint16)),
    "4-D with one volume": four_dimensional,
    "slope 0": lambda folder: save(folder, brain(), scl_slope=0, scl_inter=5),
    "slope not a number": lambda folder: save(folder, brain(), scl_slope=np.nan),
    "scaled beyond 16 bits": lambda folder: save(folder, brain(), scl_slope=1000),
    "huge scale": lambda folder: save(folder, brain(), scl_slope=1e30),
    "tiny scale": lambda folder: save(folder, brain(), scl_slope=1e-30),
    "negative intensities": shifted,
    "compressed": lambda folder: save(folder, brain(), name="scan.nii.gz"),
    "name with spaces": lambda folder: save(folder, brain(), name="scan of  monday.nii"),
    "name of other letters": lambda folder: save(folder, brain(), name="スキャン é.nii"),
    "behind a link": lambda folder: linked(folder),
}


def linked(folder):
    save(folder, brain(), name="real.nii")
    (folder / "scan.nii").symlink_to(folder / "real.nii")
    return folder / "scan.nii"


@pytest.mark.parametrize("make", SAME_RESULT.values(), ids=[*SAME_RESULT])
def test_scans_that_say_the_same_in_another_way_have_the_same_mask(segmenter, expected, tmp_path, make):
    mask = segmenter.check(make(tmp_path))
    assert not isinstance(mask, str), mask
    assert (mask != expected).sum() <= 1  # the scaling rounds otherwise


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64, np.uint8, np.int8])
def test_voxels_of_any_real_type(segmenter, tmp_path, kind):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image((brain() // 8).astype(kind), np.eye(4), dtype=kind), path)
    assert segmenter.check(path).any()


REFUSED_VOXELS = {
    "NaN": (spoiled(np.nan), "has NaN or infinite voxels"),
    "infinite": (spoiled(np.inf), "has NaN or infinite voxels"),
    "minus infinite": (spoiled(-np.inf), "has NaN or infinite voxels"),
    "beyond single precision": (spoiled(1e30).astype(np.float64) * 1e19, "has NaN or infinite voxels"),
    "far outside the rest": (spoiled(1e30), "times the brain's own range"),
    "empty": (brain() * 0, "has no voxel that differs from its background"),
    "a line of brain": (brain((1, 1, 9)), "shows too little of the head"),
    "noise around": (
        np.arange(brain().size, dtype=np.int32).reshape(brain().shape),
        "shows too little of the head",
    ),
    "constant": ((brain() > 0).astype(np.int16) * 7, "has a brain of constant intensity"),
    "one voxel of brain": (np.pad(np.full((1, 1, 1), 5, np.int16), 4), "has a brain of constant intensity"),
    "complex": (brain().astype(np.complex64), "expected one real number a voxel"),
    "colors": (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected one real number a voxel"),
    "4-D with several volumes": (np.stack([brain()] * 2, axis=-1), "expected a volume (H, W, D)"),
    "2-D": (brain()[..., 0], "expected a volume (H, W, D)"),
}


@pytest.mark.parametrize(("voxels", "message"), REFUSED_VOXELS.values(), ids=[*REFUSED_VOXELS])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_voxels_that_no_result_could_be_trusted_for(segmenter, tmp_path, voxels, message):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    found = segmenter.check(path)
    assert isinstance(found, str) and message in found


def test_16_bit_extremes_are_values_like_others(segmenter, tmp_path):
    voxels = brain()
    voxels[5, 6, 2], voxels[6, 6, 2], voxels[0, 0, 0] = 32767, 1, -32768
    assert segmenter.check(save(tmp_path, voxels)).shape == voxels.shape


REFUSED_HEADERS = {
    "no voxel size along an axis": (
        {"pixdim": [1, 0, 1, 1, 0, 0, 0, 0], "srow_x": 0, "sform_code": 2},
        "affine that maps voxels to no space",
    ),
    "singular": ({"srow_y": [1, 0, 0, 0]}, "affine that maps voxels to no space"),
    "nearly singular": ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1 + 1e-5, 0, 0]}, "affine that maps voxels to no space"),
    "not a number": ({"srow_x": [np.nan, 0, 0, 0]}, "affine that maps voxels to no space"),
    "voxels of a micrometer": ({"srow_x": [1e-3, 0, 0, 0]}, "repair its header"),
    "voxels of a meter": ({"srow_z": [0, 0, 1000, 0]}, "repair its header"),
    "more voxels than there are": ({"dim": [3, 200, 200, 200, 1, 1, 1, 1]}, "is cut short"),
    "as many voxels as can be said": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "is cut short"),
    "an axis without voxels": ({"dim": [3, 12, 0, 5, 1, 1, 1, 1]}, "expected a volume"),
    "negative axis": ({"dim": [3, 12, -14, 5, 1, 1, 1, 1]}, "expected a volume"),
    "voxels that start behind the end": ({"vox_offset": 1e8}, "is cut short"),
    "unknown type": ({"datatype": 77}, "can be read"),
    "other magic": ({"magic": b"abc"}, "can be read"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("header", "message"), REFUSED_HEADERS.values(), ids=[*REFUSED_HEADERS])
def test_headers_that_cannot_be_true(segmenter, tmp_path, header, message, suffix):
    found = segmenter.check(save(tmp_path, brain(), name=f"scan{suffix}", **header))
    assert isinstance(found, str) and message in found


def test_zero_spacing_in_the_field_for_it_alone_is_what_other_programs_make_of_it(segmenter, expected, tmp_path):
    mask = segmenter.check(save(tmp_path, brain(), pixdim=[1, 0, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(mask, expected)


def test_sheared_scan_gets_its_mask_in_its_own_space(segmenter, tmp_path):
    sheared = np.eye(4)
    sheared[0, 1], sheared[1, 2] = 0.4, -0.3
    assert segmenter.check(save(tmp_path, brain(), sheared)).any()


def test_position_is_that_of_the_file_where_its_two_affines_disagree(segmenter, tmp_path):
    path = save(tmp_path, brain(), srow_x=[0.5, 0, 0, 20], qform_code=1, qoffset_x=-77)
    assert nib.load(path).affine[0, 3] == 20
    assert not isinstance(segmenter.check(path), str)  # which compares the affines


@pytest.mark.parametrize("shape", [(1, 14, 5), (12, 1, 5), (12, 14, 1), (10_000, 3, 3), (3, 10_000, 3), (3, 3, 400)])
def test_axes_of_one_voxel_and_of_many(segmenter, tmp_path, shape):
    start = time.monotonic()
    mask = segmenter.check(save(tmp_path, brain(shape)))
    assert not isinstance(mask, str) and mask.shape == shape
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_ten_thousand_slices(segmenter, tmp_path):
    assert segmenter.check(save(tmp_path, brain((3, 3, 10_000)))).shape == (3, 3, 10_000)


def test_several_hundred_slices(segmenter, tmp_path):
    assert segmenter.check(save(tmp_path, brain((12, 14, 300)))).any()


@pytest.mark.parametrize("size", [2, 3, 9])
def test_brains_of_a_few_voxels(segmenter, tmp_path, size):
    voxels = np.zeros((9, 9, 9), np.int16)
    voxels[4, 4, 0:size] = np.arange(1, size + 1) * 10
    assert segmenter.check(save(tmp_path, voxels)).shape == voxels.shape


def pipe(path):
    os.mkfifo(path)


def loop(path):
    path.with_name("other.nii").symlink_to(path)
    path.symlink_to(path.with_name("other.nii"))


NO_FILES = {
    "pipe": (pipe, "is no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no file"),
    "folder": (lambda path: path.mkdir(), "is no file"),
    "link in a circle": (loop, "No file"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "No file"),
    "nothing": (lambda path: None, "No file"),
    "no bytes": (lambda path: path.touch(), "can be read"),
    "zeros": (lambda path: path.write_bytes(bytes(4000)), "can be read"),
    "another format": (lambda path: path.write_bytes(b"PK\3\4" * 99), "can be read"),
}


@pytest.mark.parametrize(("make", "message"), NO_FILES.values(), ids=[*NO_FILES])
def test_what_is_no_file_of_voxels(segmenter, tmp_path, make, message):
    make(tmp_path / "scan.nii")
    found = segmenter.check(tmp_path / "scan.nii")
    assert isinstance(found, str) and message in found


@pytest.mark.parametrize("name", ["scan.mgh", "scan.nii.bz2", "scan.img", "scan", "scan.NII"])
def test_other_endings_are_named(segmenter, tmp_path, name):
    save(tmp_path, brain()).rename(tmp_path / name)
    assert "has another ending than .nii.gz, .nii, .mgz, .nrrd, .mha" in segmenter.check(tmp_path / name)


def test_little_file_that_unpacks_to_much_is_refused_before_it_fills_the_memory(segmenter, tmp_path):
    whole = save(tmp_path, brain()).read_bytes()
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(whole)
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 3e6
    assert "holds far more than the voxels" in segmenter.check(bomb)


@pytest.mark.parametrize("value", [-3, 0.4, 17])
def test_lesion_masks_of_other_values(tmp_path, value):
    make_scan(tmp_path / "scans", "a", lesion={}, modalities=("flair",))
    marked = np.zeros((14, 18, 12), np.float32)
    marked[5:8, 7:10, 5] = value
    write_nifti(tmp_path / "scans" / "a" / "a_seg.nii.gz", marked)
    folders = {"dataset_dir": str(tmp_path / "scans"), "output_dir": str(tmp_path / "out")}
    splits = {"split_training": ["a"], "split_validation": "null", "split_testing": "null"}
    _, refusal = outcome(run_bundle, "preprocess", slice_range=[2, 9], num_workers=0, **folders, **splits)
    if value == 17:
        slices = {item["slice"] for item in read_slices(tmp_path / "out", "training", ["flair"])}
        assert slices == {2, 3, 4, 6, 7, 8}
    else:
        assert f"a has a lesion mask with voxels of {value:g}, expected whole numbers" in refusal


# Attacks


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_model_file_does_not_run(segmenter, tmp_path, legacy, inside):
    payload = Payload(tmp_path / "ran")
    weights = torch.load(segmenter.model_file, weights_only=True)
    content = {**weights, "threshold": payload} if inside else payload
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert "is not a file of network weights" in refusal and not (tmp_path / "ran").exists()


def test_code_in_a_plain_pickle_does_not_run(segmenter, tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert "is not a file of network weights" in refusal and not (tmp_path / "ran").exists()


def test_code_in_a_checkpoint_does_not_run(tmp_path, two_modalities):
    (tmp_path / "run").mkdir()
    torch.save({"network": Payload(tmp_path / "ran")}, tmp_path / "run" / "checkpoint.pt")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    options = {"output_dir": str(tmp_path / "run"), "model_file": str(tmp_path / "model.pt"), "resume": True}
    _, refusal = outcome(run_bundle, "train", iterations=1, **two_modalities, **options)
    assert "checkpoint.pt belongs to another training" in refusal
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model.pt").exists()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_code_in_a_slice_does_not_run(tmp_path):
    array = np.array([Payload(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "image.npy", array, allow_pickle=True)
    entry = {"case": "a", "slice": 1, "image": "image.npy", "brain_mask": "image.npy"}
    (tmp_path / "datalist.json").write_text(json.dumps({"modalities": ["flair"], "training": [entry]}))
    _, refusal = outcome(read_slices, tmp_path, "training", ["flair"])
    assert "is no slice that can be read" in refusal and not (tmp_path / "ran").exists()


def without(weights):
    weights.pop("masked.head.2.weight")


def with_more(weights):
    weights["masked.extra"] = torch.zeros(1)


def other_shape(weights):
    weights["masked.head.2.weight"] = torch.zeros(3, 3)


def not_a_number(weights):
    weights["masked.head.2.weight"].view(-1)[0] = float("nan")


def infinite_statistics(weights):
    weights["masked.head.0.running_var"][0] = float("inf")


def endless_field(weights):
    weights["field_of_view"] = torch.tensor([1e9, 1e9])


def no_deviation(weights):
    weights["deviation"] = torch.tensor(0.0)


def half_calibrated(weights):
    weights["first_threshold"] = torch.tensor(float("nan"))


WRONG_WEIGHTS = {
    without: "holds the weights of another network",
    with_more: "holds the weights of another network",
    other_shape: "holds the weights of another network",
    not_a_number: "holds numbers that no training leaves (masked.head.2.weight)",
    infinite_statistics: "holds numbers that no training leaves (masked.head.0.running_var)",
    endless_field: "holds numbers that no training leaves (field_of_view)",
    no_deviation: "holds numbers that no training leaves (deviation)",
    half_calibrated: "holds numbers that no training leaves (thresholds)",
}


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_weights_that_do_not_fit_or_are_no_numbers(segmenter, tmp_path, change, message):
    weights = torch.load(segmenter.model_file, weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "model.pt")
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert message in refusal


def test_one_flipped_bit_in_the_weights_is_found(segmenter, tmp_path):
    content = bytearray(segmenter.model_file.read_bytes())
    with zipfile.ZipFile(segmenter.model_file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert "differs from its checksum" in refusal


@pytest.fixture
def neighbors(tmp_path):
    """A data folder, and beside it one that is none of its business."""
    make_scan(tmp_path / "data", "a", modalities=("flair",), suffix=".nii")
    make_scan(tmp_path / "secret", "b", modalities=("flair",), suffix=".nii")
    return tmp_path / "data", tmp_path / "secret"


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("key", ["image", "label", "brain_mask"])
def test_datalist_that_names_files_outside_is_refused_unless_allowed(neighbors, absolute, key):
    data, secret = neighbors
    name = str(secret / "b" / "b_flair.nii") if absolute else "../secret/b/b_flair.nii"
    entry = {"image": "a/a_flair.nii", "case": "a", key: name}
    (data / "list.json").write_text(json.dumps({"training": [entry]}))
    for split in (None, "training"):
        _, refusal = outcome(find_scans, str(data / "list.json"), ["flair"], split=split)
        assert "which is outside" in refusal and "`allow_outside`" in refusal
    (subject,) = find_scans(str(data / "list.json"), ["flair"], allow_outside=True)
    found = subject[key][0] if key == "image" else subject[key]
    assert os.path.samefile(found, secret / "b" / "b_flair.nii")


@pytest.mark.parametrize("name", ["../secret/b", "a/../../secret/b", "{}/b"])
def test_split_that_names_cases_outside_is_refused_unless_allowed(neighbors, name):
    data, secret = neighbors
    (data / "split.txt").write_text(name.format(secret))
    _, refusal = outcome(find_scans, str(data), ["flair"], split=str(data / "split.txt"))
    assert "which is outside" in refusal
    (subject,) = find_scans(str(data), ["flair"], split=str(data / "split.txt"), allow_outside=True)
    assert subject["case"] == "b" and os.path.samefile(subject["image"][0], secret / "b" / "b_flair.nii")


@pytest.mark.parametrize("config", ["preprocess", "inference", "evaluate"])
def test_switch_for_files_outside_is_an_id_of_the_config(neighbors, tmp_path, config):
    data, secret = neighbors
    shutil.copy(secret / "b" / "b_flair.nii", secret / "b" / "b_seg.nii")
    entry = {"image": str(secret / "b" / "b_flair.nii"), "label": str(secret / "b" / "b_seg.nii"), "case": "b"}
    (data / "list.json").write_text(json.dumps({"training": [entry]}))
    options = {"dataset_dir": str(data / "list.json"), "output_dir": str(tmp_path / "out")}
    if config == "preprocess":
        options |= {f"split_{split}": "null" for split in ("validation", "testing")}
        options |= {"split_training": "training", "slice_range": [2, 9], "num_workers": 0}
        options["slice_selection#training"] = "all"
    else:
        options |= {"max_passes": 1, "batch_size": 16}
    _, refusal = outcome(run_bundle, config, **options)
    assert "which is outside" in refusal and not files_below(tmp_path / "out")
    run_bundle(config, allow_outside=True, **options)
    assert any("b" in path.name or "b" in path.parts for path in files_below(tmp_path / "out"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../x.npy"])
def test_list_of_slices_that_names_files_outside_is_refused(tmp_path, name):
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 4)))
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.zeros((1, 4, 4)))
    entry = {"case": "a", "slice": 1, "image": "x.npy", "brain_mask": name}
    (tmp_path / "data" / "datalist.json").write_text(json.dumps({"modalities": ["flair"], "training": [entry]}))
    _, refusal = outcome(read_slices, tmp_path / "data", "training", ["flair"])
    assert "which is outside" in refusal


@pytest.mark.parametrize(
    "case",
    ["../../x", "/x", "a/b", "a\\b", "..", ".hidden", "a\nb", "a\x1b[2Jb", "a\0b", "\ud800", "x" * 300, " ", ["a"], {}],
)
def test_case_names_that_would_leave_the_output_folder_or_a_line(neighbors, case):
    data, _ = neighbors
    (data / "list.json").write_text(json.dumps({"training": [{"image": "a/a_flair.nii", "case": case}]}))
    _, refusal = outcome(find_scans, str(data / "list.json"), ["flair"])
    if case == {}:  # as good as none
        assert refusal is None
    else:
        assert "has the case name" in refusal and refusal.isprintable()


@pytest.mark.parametrize("name", ["a\x1b[2J", "b\nerror: all is well"])
def test_folders_and_files_with_control_characters(neighbors, name):
    data, _ = neighbors
    make_scan(data, name, modalities=("flair",), suffix=".nii")
    _, refusal = outcome(find_scans, str(data), ["flair"])
    assert "which is no file name" in refusal and refusal.isprintable()
    _, refusal = outcome(find_scans, "", ["flair"], str(data / name / f"{name}_flair.nii"))
    assert "has the case name" in refusal and refusal.isprintable()


def test_two_cases_whose_files_have_one_name_keep_their_results_apart(segmenter, tmp_path):
    for case, factor in (("one", 1), ("two", 3)):
        (tmp_path / case).mkdir()
        save(tmp_path / case, brain() * factor)
    entries = [{"image": f"{case}/scan.nii", "case": case} for case in ("one", "two")]
    (tmp_path / "list.json").write_text(json.dumps({"testing": entries}))
    run_bundle(
        "inference",
        dataset_dir=str(tmp_path / "list.json"),
        output_dir=str(tmp_path / "out"),
        max_passes=1,
        batch_size=4,
    )
    names = [
        f"{case}/{case}_{end}"
        for case in ("one", "two")
        for end in ("anomaly_map.nii.gz", "anomaly_mask.nii.gz", "record.json")
    ]
    found = [path.relative_to(tmp_path / "out") for path in files_below(tmp_path / "out") if path.name != RECORD]
    assert [*map(str, found)] == [
        "lesions.csv",
        *names,
        "volumes.csv",
    ]


class Tags(HTMLParser):
    """A page's tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


ATTACK = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"


@pytest.mark.parametrize("place", ["case", "score", "cases", "source"])
def test_report_runs_nothing_that_a_table_brings(tmp_path, place):
    folder = tmp_path / "evaluation"
    write_evaluation(folder)
    plain = Tags(write_report(str(folder)).read_text(encoding="utf-8"))
    quoted = '"' + ATTACK.replace('"', '""') + '"'
    summary = json.loads((folder / "summary.json").read_text())
    if place == "case":
        content = (folder / "cases.csv").read_text().replace("middle", quoted)
        (folder / "cases.csv").write_text(content)
    elif place == "score":
        for name in ("cases.csv", "curves.csv"):
            content = (folder / name).read_text().replace("baseline_zscore", "baseline_<script>")
            (folder / name).write_text(content)
    else:
        summary["cases" if place == "cases" else "baseline_threshold_source"] = ATTACK
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "report.html").unlink()
    _, refusal = outcome(write_report, str(folder))
    if place == "cases":
        assert "holds no whole evaluation" in refusal and not (folder / "report.html").exists()
        return
    page = Tags((folder / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/passwd", "pictures/../../secret.png"])
def test_report_shows_no_picture_from_outside(tmp_path, picture):
    folder = tmp_path / "evaluation"
    write_evaluation(folder)
    shutil.copy(folder / "pictures" / "0.png", tmp_path / "secret.png")
    content = (folder / "cases.csv").read_text().replace("pictures/0.png", picture)
    (folder / "cases.csv").write_text(content)
    _, refusal = outcome(write_report, str(folder))
    assert "which is outside" in refusal and not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", f"{NAME}/../../outside.txt", "..\\outside.txt"])
def test_zip_of_a_bundle_cannot_write_outside_its_folder(tmp_path, name):
    name = name.replace("/tmp", str(tmp_path))
    evil = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr(f"{NAME}/configs/metadata.json", "{}")
        archive.writestr(name, "x")
    target = tmp_path / "in" / "deep"
    try:
        download(name=NAME, url=evil.as_uri(), bundle_dir=str(target), progress=False)
    except ValueError as error:
        assert "unsafe" in str(error).lower()
    outside = [path for path in files_below(tmp_path) if target not in path.parents and path != evil]
    assert not outside


def test_link_in_the_zip_of_a_bundle_is_not_followed(tmp_path):
    evil = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        link = zipfile.ZipInfo(f"{NAME}/models")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "victim"))
        archive.writestr(f"{NAME}/models/outside.txt", "x")
    (tmp_path / "victim").mkdir()
    try:
        download(name=NAME, url=evil.as_uri(), bundle_dir=str(tmp_path / "in"), progress=False)
    except (OSError, ValueError):
        pass
    assert not files_below(tmp_path / "victim")


# Values of the command line


def test_device_may_be_named(tmp_path, two_modalities):
    options = {"output_dir": str(tmp_path), "model_file": str(tmp_path / "model.pt"), "iterations": 1, "device": "cpu"}
    run_bundle("train", **two_modalities, **options)
    assert (tmp_path / "model.pt").is_file()
