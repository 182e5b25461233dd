"""The tables of segmented volumes: right numbers, of the volumes that are finished alone, and no file of another's."""

import csv
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_scan, run_bundle, save_small_model
from monai.data import MetaTensor
from scripts.common.errors import innermost_message
from scripts.inference.tables import LESION_COLUMNS, VOLUME_COLUMNS, measure_volume, rows_of, write_tables


def oblique(spacing, degrees=25.0):
    """A grid of these voxel sizes in mm, turned about the first and the last axis, away from the origin."""
    angle = np.deg2rad(degrees)
    first, last = np.eye(4), np.eye(4)
    first[1:3, 1:3] = last[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    shift = np.eye(4)
    shift[:3, 3] = -40, 25, 7
    return shift @ first @ last @ np.diag([*spacing, 1])


def read_table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables(folder):
    return {name: read_table(folder / name) for name in ("volumes.csv", "lesions.csv")}


@pytest.fixture
def two_areas():
    """Marked boxes of 2 x 3 x 4 and 1 x 1 x 2 voxels with scores of mean 5 and 2, in a grid (12, 15, 18)."""
    mask, anomaly_map = np.zeros((12, 15, 18), bool), np.full((12, 15, 18), 0.5, np.float32)
    large, small = np.s_[2:4, 5:8, 9:13], np.s_[9:10, 3:4, 1:3]
    mask[large] = mask[small] = True
    anomaly_map[large] = np.linspace(4, 6, 24).reshape(2, 3, 4)
    anomaly_map[small] = [[[1, 3]]]
    return mask, anomaly_map


def measured(mask, anomaly_map, affine):
    images = (MetaTensor(torch.as_tensor(array[None].copy()), affine) for array in (mask, anomaly_map, ~mask))
    return measure_volume(*images)


def center_of(lesion):
    return [float(lesion[f"{axis}_mm"]) for axis in "xyz"]


def test_areas_of_known_size_and_place_in_an_oblique_grid(two_areas):
    affine = oblique((0.8, 1.1, 3.0))
    numbers = measured(*two_areas, affine)
    voxel_ml = 0.8 * 1.1 * 3.0 / 1000
    assert numbers["marked_voxels"] == 26 and numbers["marked_ml"] == pytest.approx(26 * voxel_ml)
    assert numbers["brain_ml"] == pytest.approx((12 * 15 * 18 - 26) * voxel_ml)
    large, small = numbers["lesions"]
    for lesion, voxels, center, score, peak in ((large, 24, (2.5, 6, 10.5), 5, 6), (small, 2, (9, 3, 1.5), 2, 3)):
        assert lesion["ml"] == pytest.approx(voxels * voxel_ml) and lesion["mean_score"] == pytest.approx(score)
        assert lesion["peak_probability"] == peak
        assert center_of(lesion) == pytest.approx((affine @ [*center, 1])[:3].tolist())


def test_numbers_in_mm_do_not_depend_on_the_order_of_the_axes(two_areas):
    affine = oblique((0.8, 1.1, 3.0))
    turned = affine @ np.array([[0, 0, -1, 11], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    expected = measured(*two_areas, affine)["lesions"]
    found = measured(*(array[::-1].transpose(1, 2, 0) for array in two_areas), turned)["lesions"]
    for one, other in zip(expected, found, strict=True):
        assert center_of(one) == pytest.approx(center_of(other))
        assert one["ml"] == pytest.approx(other["ml"]) and one["mean_score"] == pytest.approx(other["mean_score"])


def test_voxels_that_touch_at_a_corner_are_one_area():
    mask = np.zeros((5, 5, 5), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[4, 4, 4] = True
    assert len(measured(mask, mask.astype(float), np.eye(4))["lesions"]) == 2


def test_empty_mask_has_no_lesion():
    numbers = measured(np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5)), np.eye(4))
    assert numbers["marked_voxels"] == numbers["marked_ml"] == 0 and numbers["lesions"] == []


@pytest.fixture(scope="module")
def scans_and_model(tmp_path_factory):
    """Three scans in an oblique grid, the last of them no NIfTI file, and a model that marks part of the others."""
    folder = tmp_path_factory.mktemp("tables")
    for case in ("a", "b", "c"):
        make_scan(folder / "scans", case, modalities=("flair",), affine=oblique((4, 5, 6)))
    (folder / "scans/c/c_flair.nii.gz").write_bytes(b"no scan")
    return folder / "scans", save_small_model(folder / "model.pt")


def infer(scans_and_model, output_dir, **options):
    dataset_dir, model_file = scans_and_model
    options = {"dataset_dir": str(dataset_dir), "model_file": str(model_file), "exclude": ["c"], **options}
    run_bundle("inference", output_dir=str(output_dir), **options)


@pytest.fixture(scope="module")
def segmented(scans_and_model, tmp_path_factory):
    """Where the scans a and b were segmented in one run."""
    folder = tmp_path_factory.mktemp("segmented")
    infer(scans_and_model, folder)
    return folder


def test_tables_agree_with_the_masks_on_disk(segmented, scans_and_model):
    found = tables(segmented)
    assert [row["case"] for row in found["volumes.csv"]] == ["a", "b"]
    assert tuple(found["volumes.csv"][0]) == VOLUME_COLUMNS and tuple(found["lesions.csv"][0]) == LESION_COLUMNS
    for row in found["volumes.csv"]:
        path = segmented / row["case"] / f"{row['case']}_anomaly_mask.nii.gz"
        mask = nib.load(path)
        marked = np.asanyarray(mask.dataobj) > 0
        anomaly_map = nib.load(str(path).replace("_mask", "_map")).get_fdata()
        lesions = [lesion for lesion in found["lesions.csv"] if lesion["case"] == row["case"]]
        assert int(row["marked_voxels"]) == marked.sum() > 0 and int(row["lesions"]) == len(lesions) > 0
        assert float(row["marked_ml"]) == pytest.approx(marked.sum() * 0.12, rel=1e-4)
        ml = np.array([float(lesion["ml"]) for lesion in lesions])
        assert ml.sum() == pytest.approx(float(row["marked_ml"]), rel=1e-4) and (np.diff(ml) <= 0).all()
        centers = np.array([center_of(lesion) for lesion in lesions])
        expected = nib.affines.apply_affine(mask.affine, np.argwhere(marked).mean(axis=0))
        np.testing.assert_allclose(ml @ centers / ml.sum(), expected, atol=0.01)
        scores = np.array([float(lesion["mean_score"]) for lesion in lesions])
        assert ml @ scores / ml.sum() == pytest.approx(anomaly_map[marked].mean(), rel=1e-3)
        assert float(row["brain_ml"]) > float(row["marked_ml"]) and float(row["seconds"]) > 0
        assert row["model"] == hashlib.sha256(scans_and_model[1].read_bytes()).hexdigest()[:12]


def without_seconds(folder):
    """The tables, but for the only numbers that differ from run to run."""
    found = tables(folder)
    assert all(row.pop("seconds") for row in found["volumes.csv"])
    return found


def test_resumed_run_gives_the_same_tables(segmented, scans_and_model, tmp_path):
    infer(scans_and_model, tmp_path, exclude=["b", "c"])
    first = tables(tmp_path)
    assert [row["case"] for row in first["volumes.csv"]] == ["a"]
    infer(scans_and_model, tmp_path)
    assert without_seconds(tmp_path) == without_seconds(segmented)
    assert tables(tmp_path)["volumes.csv"][0] == first["volumes.csv"][0]
    before = tables(tmp_path)
    (tmp_path / "lesions.csv").unlink()
    infer(scans_and_model, tmp_path)
    assert tables(tmp_path) == before


def test_processes_make_the_tables_of_one(segmented, scans_and_model, tmp_path):
    for rank, cases in ((1, ["b"]), (0, ["a", "b"])):
        infer(scans_and_model, tmp_path, rank=rank, world_size=2)
        assert [row["case"] for row in tables(tmp_path)["volumes.csv"]] == cases
    assert without_seconds(tmp_path) == without_seconds(segmented)


def test_runs_of_one_scan_each_leave_the_tables_of_all_but_those_that_failed(segmented, scans_and_model, tmp_path):
    for case in "bca":
        one = {"image": str(scans_and_model[0] / case / f"{case}_flair.nii.gz"), "exclude": None}
        try:
            infer(scans_and_model, tmp_path, **one)
        except RuntimeError as error:
            assert case == "c" and "c_flair.nii.gz is not a NIfTI file" in innermost_message(error)
    assert without_seconds(tmp_path) == without_seconds(segmented)
    infer(scans_and_model, tmp_path, threshold_scale=2.0, exclude=["b", "c"])
    assert [row["threshold_scale"] for row in tables(tmp_path)["volumes.csv"]] == ["2", "1"]


def test_table_of_another_stops_the_run_before_any_work(scans_and_model, tmp_path):
    (tmp_path / "lesions.csv").write_text("by hand")
    with pytest.raises(RuntimeError) as error:
        infer(scans_and_model, tmp_path)
    assert "lesions.csv is in the way, and no earlier output of this command" in innermost_message(error.value)
    assert (tmp_path / "lesions.csv").read_text() == "by hand"


def test_table_of_no_volume_is_not_made_but_an_earlier_one_becomes_empty(segmented, tmp_path):
    write_tables(tmp_path, [])
    assert not list(tmp_path.iterdir())
    record = json.loads((segmented / "a/a_record.json").read_text())
    write_tables(tmp_path, [{}, record])
    assert [row["case"] for row in tables(tmp_path)["volumes.csv"]] == ["a"]
    write_tables(tmp_path, [{**record, "numbers": {"lesions": [{}]}}])
    assert tables(tmp_path) == {"volumes.csv": [], "lesions.csv": []}


def test_row_tells_the_threshold_and_how_often_the_run_warned():
    numbers = measured(np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5)), np.eye(4)) | {"seconds": 1.5}
    record = {"case": "one", "numbers": numbers, "warnings": ["a", "b"], "model_sha256": "0" * 64}
    row, _ = rows_of(record | {"threshold_scale": 1.2})
    assert (row["threshold_scale"], row["warnings"], row["model"]) == ("1.2", 2, "0" * 12)
