import csv
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import CONFIGS, FORMATS, run_bundle, save_small_model, write_volume
from scripts.common.errors import innermost_message
from scripts.common.paths import bundle_version
from scripts.inference.results import SIDECAR
from scripts.tools.phantoms import phantom


@pytest.fixture(scope="module")
def volume():
    """A phantom with a bright lesion (40 x 48 x 6) in FLAIR and T1, and its affine."""
    arrays = phantom(3, shape=(40, 48, 6), lesion="bright")
    return arrays, np.array([[4.0, 0, 0, -70], [0, 4, 0, -90], [0, 0, 8, -10], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "model.pt")


def write(folder, case, data, affine, modality="flair"):
    (folder / case).mkdir(parents=True, exist_ok=True)
    path = folder / case / f"{case}_{modality}.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def outputs(folder, case):
    return [nib.load(folder / case / f"{case}_{name}.nii.gz") for name in ("anomaly_mask", "anomaly_map")]


def oriented(image, axcodes):
    start = nib.orientations.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axcodes)))


def visible(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def infer(model_file, output_dir, **options):
    options = {"model_file": str(model_file), "output_dir": str(output_dir), **options}
    return run_bundle("inference", run_id="inference", **options)


@pytest.fixture(scope="module")
def segmented(volume, model_file, tmp_path_factory):
    """The phantom in RAS, LAS, PIR, oblique and with other voxel sizes, all segmented in one run."""
    scans, results = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("results")
    arrays, affine = volume
    plain = nib.Nifti1Image(arrays["flair"], affine)
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    images = {
        "RAS": plain,
        "LAS": oriented(plain, "LAS"),
        "PIR": oriented(plain, "PIR"),
        "SPL": oriented(plain, "SPL"),
        "oblique": nib.Nifti1Image(arrays["flair"], turn @ affine),
        "thick": nib.Nifti1Image(arrays["flair"], affine @ np.diag([1, 1, 2, 1])),
    }
    for case, image in images.items():
        write(scans, case, np.asanyarray(image.dataobj), image.affine)
    infer(model_file, results, dataset_dir=str(scans))
    return scans, results, images


@pytest.mark.parametrize("case", ["RAS", "LAS", "PIR", "SPL", "oblique", "thick"])
def test_outputs_lie_in_the_space_of_the_input(segmented, case):
    _, results, images = segmented
    for output, dtype in zip(outputs(results, case), (np.uint8, np.float32), strict=True):
        assert output.shape == images[case].shape and output.get_data_dtype() == dtype
        np.testing.assert_allclose(output.affine, images[case].affine, atol=1e-4)
        assert nib.aff2axcodes(output.affine) == nib.aff2axcodes(images[case].affine)


@pytest.mark.parametrize("case", ["LAS", "PIR", "SPL"])
def test_orientation_does_not_change_the_result(segmented, case):
    _, results, _ = segmented
    for expected, found in zip(outputs(results, "RAS"), outputs(results, case), strict=True):
        np.testing.assert_array_equal(oriented(found, "RAS").get_fdata(), expected.get_fdata())


def test_mask_is_binary_inside_the_brain_and_neither_empty_nor_full(segmented, volume):
    mask, anomaly_map = (np.asanyarray(output.dataobj) for output in outputs(segmented[1], "RAS"))
    brain = volume[0]["flair"] > 0
    assert set(np.unique(mask)) == {0, 1} and not mask[~brain].any() and not anomaly_map[~brain].any()
    assert 0 < mask[brain].mean() < 0.9 and (anomaly_map >= 0).all()


def test_finished_volumes_are_not_done_again_until_something_changes(segmented, model_file, capsys):
    scans, results, _ = segmented
    mask = results / "RAS" / "RAS_anomaly_mask.nii.gz"
    before = os.stat(mask).st_mtime_ns
    infer(model_file, results, dataset_dir=str(scans))
    assert "6 of 6 scans are finished already." in capsys.readouterr().out
    assert os.stat(mask).st_mtime_ns == before
    (results / "PIR" / "PIR_anomaly_map.nii.gz").unlink()
    infer(model_file, results, dataset_dir=str(scans))
    assert "5 of 6 scans are finished already." in capsys.readouterr().out
    assert (results / "PIR" / "PIR_anomaly_map.nii.gz").exists() and os.stat(mask).st_mtime_ns == before
    infer(model_file, results, dataset_dir=str(scans), threshold_scale=0.9)
    assert "finished already" not in capsys.readouterr().out
    assert os.stat(mask).st_mtime_ns > before


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_every_format_gives_the_mask_of_the_same_volume_in_its_space(volume, model_file, tmp_path, suffix):
    turn = np.array([[0, 0, -1, 5], [-0.8, 0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 0, 1]])  # an oblique LPI or so
    affine = turn @ volume[1]
    for name in ("plain.nii.gz", f"other{suffix}"):
        write_volume(tmp_path / "scans" / name, volume[0]["flair"].astype(np.float32), affine)
    infer(model_file, tmp_path / "out", dataset_dir=str(tmp_path / "scans"), save_brain_mask=True)
    for name in ("anomaly_mask", "anomaly_map", "found_brain_mask"):
        plain, other = (nib.load(tmp_path / "out" / case / f"{case}_{name}.nii.gz") for case in ("plain", "other"))
        np.testing.assert_allclose(other.affine, affine, atol=1e-4)
        np.testing.assert_array_equal(np.asanyarray(plain.dataobj), np.asanyarray(other.dataobj))
        assert np.asanyarray(plain.dataobj).any()


def test_results_are_a_derivative_of_bids_on_request(volume, model_file, tmp_path, capsys):
    scans, results = tmp_path / "scans", tmp_path / "out"
    for case in ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1", "sub-02/ses-2/anat/sub-02_ses-2"):
        write_volume(scans / f"{case}_FLAIR.nii.gz", volume[0]["flair"], volume[1])
    write_volume(scans / "sub-03/anat/sub-03_FLAIR.nii.gz", np.zeros_like(volume[0]["flair"]), volume[1])
    options = {"dataset_dir": str(scans), "layout": "bids"}
    with pytest.raises(RuntimeError):  # of sub-03, of which nothing stays
        infer(model_file, results, save_brain_mask=True, **options)
    anat, folder = results / "sub-01" / "anat", results / "sub-02" / "ses-2" / "anat"
    ends = ["desc-anomaly_map.nii.gz", "desc-anomaly_mask.json", "desc-anomaly_mask.nii.gz", "desc-brain_mask.nii.gz"]
    assert visible(anat) == [f"sub-01_{end}" for end in (*ends, "record.json")]
    assert visible(folder) == [f"sub-02_ses-2_{end}" for end in (*ends, "record.json")]
    assert sorted(path.name for path in results.glob("[!.]*")) == [
        "dataset_description.json",
        "lesions.csv",
        "sub-01",
        "sub-02",
        "volumes.csv",
    ]
    sidecar = json.loads((anat / "sub-01_desc-anomaly_mask.json").read_text())
    assert sidecar == {**SIDECAR, "Sources": ["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]}
    with (results / "volumes.csv").open(newline="") as table:
        names = [row["case"] for row in csv.DictReader(table)]
    assert names == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    description = json.loads((results / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../scans"}
    assert description["DatasetType"] == "derivative" and description["BIDSVersion"] and description["Name"]
    assert description["GeneratedBy"] == [{"Name": "brain_mri_anomaly_segmentation", "Version": bundle_version()}]
    infer(model_file, tmp_path / "plain", dataset_dir=str(scans / "sub-02" / "ses-1" / "anat"))
    plain = nib.load(tmp_path / "plain" / "sub-02_ses-1" / "sub-02_ses-1_anomaly_mask.nii.gz")
    found = nib.load(folder / "sub-02_ses-2_desc-anomaly_mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(plain.dataobj), np.asanyarray(found.dataobj))
    one = scans.parent / "other" / "sub-04" / "anat" / "sub-04_acq-3d_FLAIR.nii.gz"
    write_volume(one, volume[0]["flair"], volume[1])
    infer(model_file, results, image=str(one), layout="bids")
    assert (results / "sub-04" / "anat" / "sub-04_acq-3d_desc-anomaly_mask.nii.gz").is_file()
    assert "\nsub-04_acq-3d," in (results / "volumes.csv").read_text()
    capsys.readouterr()
    infer(model_file, results, save_brain_mask=True, exclude=["sub-03"], **options)
    assert "3 of 3 scans are finished already." in capsys.readouterr().out


def test_second_run_into_a_data_set_takes_the_brain_mask_of_the_other_tool(volume, model_file, tmp_path):
    image = tmp_path / "sub-01/anat/sub-01_FLAIR.nii.gz"
    write_volume(image, volume[0]["flair"], volume[1])
    given = tmp_path / "derivatives/bet/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    write_volume(given, (volume[0]["flair"] > 0).astype(np.uint8), volume[1])
    results = tmp_path / "derivatives" / "ours"
    options = {"dataset_dir": str(tmp_path), "layout": "bids", "brain_mask": "mask", "save_brain_mask": True}
    for scale in (1.0, 0.9):
        infer(model_file, results, threshold_scale=scale, **options)
        record = json.loads((results / "sub-01/anat/sub-01_record.json").read_text())
        assert [file[0] for file in record["inputs"]] == [str(image), str(given)]


def test_description_of_another_data_set_is_not_replaced(volume, model_file, tmp_path):
    write_volume(tmp_path / "sub-01/anat/sub-01_FLAIR.nii.gz", volume[0]["flair"], volume[1])
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(RuntimeError) as error:
        infer(model_file, tmp_path, dataset_dir=str(tmp_path), layout="bids")
    assert "dataset_description.json is in the way" in innermost_message(error.value)
    assert (tmp_path / "dataset_description.json").read_text() == "{}"


def test_one_file_of_any_name(volume, model_file, tmp_path):
    path = tmp_path / "scan of monday.nii"
    nib.save(nib.Nifti1Image(volume[0]["flair"], volume[1]), path)
    infer(model_file, tmp_path / "out", image=str(path))
    assert outputs(tmp_path / "out", "scan of monday")[0].shape == (40, 48, 6)


def test_failed_volume_leaves_no_output(volume, model_file, tmp_path):
    arrays, affine = volume
    write(tmp_path / "scans", "good", arrays["flair"], affine)
    write(tmp_path / "scans", "zero", np.zeros_like(arrays["flair"]), affine)
    with pytest.raises(RuntimeError) as error:
        infer(model_file, tmp_path / "out", dataset_dir=str(tmp_path / "scans"))
    assert "has no voxel that differs" in innermost_message(error.value) and "zero" in innermost_message(error.value)
    assert visible(tmp_path / "out") == [
        "good_anomaly_map.nii.gz",
        "good_anomaly_mask.nii.gz",
        "good_record.json",
        "lesions.csv",
        "volumes.csv",
    ]


def test_bad_volumes_do_not_stop_the_others(volume, model_file, tmp_path, capsys):
    arrays, affine = volume
    scans = tmp_path / "scans"
    for case in ("a", "c", "e"):
        write(scans, case, arrays["flair"], affine)
    write(scans, "b", np.full(arrays["flair"].shape, np.nan, np.float32), affine)
    (scans / "d").mkdir()
    (scans / "d/d_flair.nii.gz").write_bytes(b"no scan")
    with pytest.raises(RuntimeError) as error:
        infer(model_file, tmp_path / "out", dataset_dir=str(scans))
    assert "2 of 5 cases failed (d, b), the others are done: repair them" in innermost_message(error.value)
    printed = capsys.readouterr().out
    assert "b has NaN or infinite voxels" in printed and "d_flair.nii.gz is not a NIfTI file" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["a", "c", "e"]
    infer(model_file, tmp_path / "out", dataset_dir=str(scans), exclude=["b", "d"])
    assert "3 of 3 scans are finished already." in capsys.readouterr().out


def test_results_beside_the_scans_leave_scans_and_brain_masks_as_they_are(volume, model_file, tmp_path, capsys):
    arrays, affine = volume
    for case in ("A", "B"):
        write(tmp_path, case, arrays["flair"], affine)
        write(tmp_path, case, arrays["mask"].astype(np.uint8), affine, "mask")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    for _ in range(2):
        infer(model_file, tmp_path, dataset_dir=str(tmp_path), brain_mask="mask")
    assert "2 scans found" in (printed := capsys.readouterr().out) and "2 of 2 scans are finished" in printed
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.rglob("*_anomaly_mask.nii.gz"))) == 2


def test_results_beside_loose_scans_are_not_taken_for_scans(volume, model_file, tmp_path, capsys):
    names = ["1.2.840.3.nii.gz", "1.2.840.7.nii.gz"]
    for number, name in enumerate(names):
        nib.save(nib.Nifti1Image(np.roll(volume[0]["flair"], number, 0), volume[1]), tmp_path / name)
    for _ in range(2):
        infer(model_file, tmp_path, dataset_dir=str(tmp_path))
    assert "2 of 2 scans are finished already." in capsys.readouterr().out
    maps = [outputs(tmp_path, case)[1].get_fdata() for case in ("1.2.840.3", "1.2.840.7")]
    assert not np.array_equal(*maps)


def test_bad_input_ends_the_command_with_one_sentence(model_file, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
    command += ["--config_file", str(CONFIGS / "inference.json"), "--dataset_dir", str(tmp_path)]
    command += ["--output_dir", str(tmp_path / "out"), "--model_file", str(model_file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: No scan in")
    assert not list((tmp_path / "out").glob("*/*"))


def test_room_around_the_brain_does_not_change_the_mask(volume, model_file, tmp_path):
    arrays, affine = volume
    write(tmp_path / "scans", "plain", arrays["flair"], affine)
    write(tmp_path / "scans", "wide", np.pad(arrays["flair"], ((11, 19), (7, 30), (0, 2))), affine)
    infer(model_file, tmp_path / "out", dataset_dir=str(tmp_path / "scans"))
    plain, wide = (outputs(tmp_path / "out", case)[0].get_fdata() for case in ("plain", "wide"))
    np.testing.assert_array_equal(wide[11:-19, 7:-30, :-2], plain)
    assert wide.sum() == plain.sum() > 0
