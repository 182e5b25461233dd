"""Single pieces of input that lie or attack, and what a user gets for each: the right result, or one sentence."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_scan, save_small_model
from evaluation.test_report import write_evaluation
from hostile import brain, check, outcome
from scripts.common.model_file import load_model
from scripts.data.scans import find_scans
from scripts.evaluation.report import write_report

# Scans


def save(folder, voxels, affine=None, name="scan.nii", **header):
    """Save an array as NIfTI with some fields of its header changed afterwards, as a faulty program would."""
    path = folder / name
    content = bytearray(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_bytes())
    fields = np.frombuffer(content[:348], nib.Nifti1Header().structarr.dtype).copy()
    for key, value in header.items():
        fields[key] = value
    content[:348] = fields.tobytes()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def big_endian(folder):
    path = folder / "scan.nii"
    nib.save(nib.Nifti1Image(brain(), np.eye(4), nib.Nifti1Header(endianness=">")), path)
    assert path.read_bytes()[:4] == struct.pack(">i", 348)
    return path


def linked(folder):
    (folder / "scan.nii").symlink_to(save(folder, brain(), name="real.nii"))
    return folder / "scan.nii"


def sheared():
    affine = np.eye(4)
    affine[0, 1], affine[1, 2] = 0.4, -0.3
    return affine


SAME_RESULT = {
    "big-endian": big_endian,
    "float64": lambda folder: save(folder, brain(dtype=np.float64)),
    "uint16": lambda folder: save(folder, brain(dtype=np.uint16)),
    "int64": lambda folder: save(folder, brain(), datatype=4),
    "4-D with one volume": lambda folder: save(folder, brain()[..., None]),
    "slope 0": lambda folder: save(folder, brain(), scl_slope=0, scl_inter=5),
    "slope not a number": lambda folder: save(folder, brain(), scl_slope=np.nan),
    "scaled beyond 16 bits": lambda folder: save(folder, brain(), scl_slope=1000),
    "huge scale": lambda folder: save(folder, brain(), scl_slope=1e30),
    "tiny scale": lambda folder: save(folder, brain(), scl_slope=1e-30),
    "negative background": lambda folder: save(folder, np.where(brain() > 0, brain(), -1000).astype(np.int16)),
    "compressed": lambda folder: save(folder, brain(), name="scan.nii.gz"),
    "voxel size of 0": lambda folder: save(folder, brain(), pixdim=[1, 0, 0, 0, 0, 0, 0, 0]),
    "name of other letters": lambda folder: save(folder, brain(), name="スキャン  é.nii"),
    "behind a link": linked,
    "sheared": lambda folder: save(folder, brain(), sheared()),
    "two affines": lambda folder: save(folder, brain(), srow_x=[0.5, 0, 0, 20], qform_code=1, qoffset_x=-77),
}


@pytest.mark.parametrize("make", SAME_RESULT.values(), ids=[*SAME_RESULT])
def test_scans_that_say_the_same_in_another_way_are_read_alike(tmp_path, make):
    found, expected = check(make(tmp_path)), check(save(tmp_path, brain(), name="plain.nii"))
    assert not isinstance(found, str), found
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 14, 5), (12, 1, 5), (12, 14, 1), (10_000, 3, 3), (3, 3, 10_000)])
def test_axes_of_one_voxel_and_of_many(tmp_path, shape):
    assert check(save(tmp_path, brain(shape))).shape == shape


def spoiled(value):
    voxels = brain(dtype=np.float32)
    voxels[6, 7, 2] = value
    return voxels


REFUSED_VOXELS = {
    "NaN": (spoiled(np.nan), "has NaN or infinite voxels"),
    "minus infinite": (spoiled(-np.inf), "has NaN or infinite voxels"),
    "beyond single precision": (spoiled(1e30).astype(np.float64) * 1e19, "has NaN or infinite voxels"),
    "far outside the rest": (spoiled(1e30), "times the brain's own range"),
    "empty": (brain() * 0, "has no voxel that differs from its background"),
    "noise around": (np.arange(brain().size, dtype=np.int32).reshape(brain().shape), "shows too little of the head"),
    "constant": ((brain() > 0).astype(np.int16) * 7, "has a brain of constant intensity"),
    "one voxel of brain": (np.pad(np.full((1, 1, 1), 5, np.int16), 4), "has a brain of constant intensity"),
    "colors": (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected one real number a voxel"),
    "4-D with several volumes": (np.stack([brain()] * 2, axis=-1), "expected a volume (H, W, D)"),
}


@pytest.mark.parametrize(("voxels", "message"), REFUSED_VOXELS.values(), ids=[*REFUSED_VOXELS])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_voxels_that_no_result_could_be_trusted_for(tmp_path, voxels, message):
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii")
    assert message in check(tmp_path / "scan.nii")


REFUSED_HEADERS = {
    "no voxel size along an axis": ({"pixdim": [1, 0, 1, 1, 0, 0, 0, 0], "srow_x": 0}, "maps voxels to no space"),
    "nearly singular": ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1 + 1e-5, 0, 0]}, "maps voxels to no space"),
    "not a number": ({"srow_x": [np.nan, 0, 0, 0]}, "maps voxels to no space"),
    "voxels of a micrometer": ({"srow_x": [1e-3, 0, 0, 0]}, "repair its header"),
    "voxels of a meter": ({"srow_z": [0, 0, 1000, 0]}, "repair its header"),
    "as many voxels as can be said": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "voxels, expected at most"),
    "an axis without voxels": ({"dim": [3, 12, 0, 5, 1, 1, 1, 1]}, "expected a volume"),
    "negative axis": ({"dim": [3, 12, -14, 5, 1, 1, 1, 1]}, "expected a volume"),
    "voxels that start behind the end": ({"vox_offset": 1e8}, "is damaged"),
    "unknown type": ({"datatype": 77}, "can be read"),
    "other magic": ({"magic": b"abc"}, "can be read"),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("header", "message"), REFUSED_HEADERS.values(), ids=[*REFUSED_HEADERS])
def test_headers_that_cannot_be_true(tmp_path, header, message, suffix):
    assert message in check(save(tmp_path, brain(), name=f"scan{suffix}", **header))


def loop(path):
    path.with_name("other.nii").symlink_to(path)
    path.symlink_to(path.with_name("other.nii"))


NO_FILES = {
    "pipe": (os.mkfifo, "is no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no file"),
    "folder": (lambda path: path.mkdir(), "is no file"),
    "link in a circle": (loop, "is a link whose content is not there"),
    "nothing": (lambda path: None, "No file"),
    "no bytes": (lambda path: path.touch(), "can be read"),
    "another format": (lambda path: path.write_bytes(b"PK\3\4" * 99), "can be read"),
}


@pytest.mark.parametrize(("make", "message"), NO_FILES.values(), ids=[*NO_FILES])
def test_what_is_no_file_of_voxels(tmp_path, make, message):
    make(tmp_path / "scan.nii")
    assert message in check(tmp_path / "scan.nii")


@pytest.mark.parametrize("name", ["scan.mgh", "scan.nii.bz2", "scan.img", "scan", "scan.NII"])
def test_other_endings_are_named(tmp_path, name):
    save(tmp_path, brain()).rename(tmp_path / name)
    assert "has another ending than .nii.gz, .nii, .mgz, .nrrd, .mha" in check(tmp_path / name)


def test_little_file_that_unpacks_to_much_is_refused_before_it_fills_the_memory(tmp_path):
    whole = save(tmp_path, brain()).read_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(whole)
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert "holds far more than the voxels" in check(tmp_path / "bomb.nii.gz")


# Model files


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "inside", "pickle"])
def test_code_in_a_model_file_does_not_run(model_file, tmp_path, form):
    payload, path = Payload(tmp_path / "ran"), tmp_path / "model.pt"
    content = {**torch.load(model_file, weights_only=True), "more": payload} if form == "inside" else payload
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    _, refusal = outcome(load_model, str(path))
    assert "is not a file of network weights" in refusal and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, name: weights.pop(name), "holds the weights of another network"),
        (lambda weights, name: weights.update(more=torch.zeros(1)), "holds the weights of another network"),
        (lambda weights, name: weights.update({name: torch.zeros(3, 3)}), "holds the weights of another network"),
        (lambda weights, name: weights[name].fill_(float("nan")), "holds numbers that no training leaves"),
    ],
    ids=["fewer", "more", "another shape", "not a number"],
)
def test_weights_that_do_not_fit_or_are_no_numbers(model_file, tmp_path, change, message):
    weights = torch.load(model_file, weights_only=True)
    change(weights, max(weights, key=lambda name: weights[name].ndim))
    torch.save(weights, tmp_path / "model.pt")
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert message in refusal


def test_one_flipped_bit_in_the_weights_is_found(model_file, tmp_path):
    content = bytearray(model_file.read_bytes())
    with zipfile.ZipFile(model_file) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    _, refusal = outcome(load_model, str(tmp_path / "model.pt"))
    assert "differs from its checksum" in refusal


# Names


@pytest.fixture
def neighbors(tmp_path):
    """A data folder, and beside it one that is none of its business."""
    make_scan(tmp_path / "data", "a", modalities=("flair",), suffix=".nii")
    make_scan(tmp_path / "secret", "b", modalities=("flair",), suffix=".nii")
    return tmp_path / "data", tmp_path / "secret"


@pytest.mark.parametrize("name", ["../secret/b", "a/../../secret/b", "{}/b"])
@pytest.mark.parametrize("key", ["image", "label", "brain_mask", "split"])
def test_lists_name_files_outside_of_their_folder_only_where_that_is_allowed(neighbors, name, key):
    data, secret = neighbors
    name, options = name.format(secret), {"dataset_dir": str(data), "modalities": ["flair"]}
    if key == "split":
        options["split"] = [name]
    else:
        entry = {"image": "a/a_flair.nii", "case": "b", key: f"{name}/b_flair.nii"}
        (data / "list.json").write_text(json.dumps({"training": [entry]}))
        options["dataset_dir"] = str(data / "list.json")
    _, refusal = outcome(find_scans, **options)
    assert "which is outside" in refusal and "`allow_outside`" in refusal
    (scan,) = find_scans(**options, allow_outside=True)
    files = [*scan["image"], *(scan[other] for other in ("label", "brain_mask") if other in scan)]
    assert scan["case"] == "b" and any(os.path.samefile(file, secret / "b/b_flair.nii") for file in files)


@pytest.mark.parametrize(
    "case",
    ["../../x", "/x", "a/b", "a\\b", "..", ".hidden", "a\nb", "a\x1b[2Jb", "a\0b", "\ud800", "x" * 300, " ", ["a"]],
)
def test_case_names_that_would_leave_the_output_folder_or_a_line(neighbors, case):
    data, _ = neighbors
    (data / "list.json").write_text(json.dumps({"training": [{"image": "a/a_flair.nii", "case": case}]}))
    _, refusal = outcome(find_scans, str(data / "list.json"), ["flair"])
    assert "has the case name" in refusal and refusal.isprintable()


@pytest.mark.parametrize("name", ["a\x1b[2J", "b\nerror: all is well"])
def test_folders_and_files_with_control_characters(neighbors, name):
    data, _ = neighbors
    make_scan(data, name, modalities=("flair",), suffix=".nii")
    _, refusal = outcome(find_scans, str(data), ["flair"])
    assert "which is no file name" in refusal and refusal.isprintable()
    _, refusal = outcome(find_scans, "", ["flair"], str(data / name / f"{name}_flair.nii"))
    assert "has the case name" in refusal and refusal.isprintable()


# The page of an evaluation


class Tags(HTMLParser):
    """A page's tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


ATTACK = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"


def test_report_runs_nothing_that_a_table_brings(tmp_path):
    folder = tmp_path / "evaluation"
    write_evaluation(folder)
    plain = Tags(write_report(str(folder)).read_text(encoding="utf-8"))
    quoted = '"' + ATTACK.replace('"', '""') + '"'
    (folder / "cases.csv").write_text((folder / "cases.csv").read_text().replace("middle", quoted))
    summary = json.loads((folder / "summary.json").read_text()) | {"baseline_threshold_source": ATTACK}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "report.html").unlink()
    page = Tags(write_report(str(folder)).read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("picture", ["../secret.png", "/etc/passwd", "pictures/../../secret.png"])
def test_report_shows_no_picture_from_outside(tmp_path, picture):
    folder = tmp_path / "evaluation"
    write_evaluation(folder)
    shutil.copy(folder / "pictures" / "0.png", tmp_path / "secret.png")
    (folder / "cases.csv").write_text((folder / "cases.csv").read_text().replace("pictures/0.png", picture))
    _, refusal = outcome(write_report, str(folder))
    assert "which is outside" in refusal and not (folder / "report.html").exists()
