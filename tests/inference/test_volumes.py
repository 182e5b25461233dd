import math
import os
import re
import subprocess
import sys
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_bundle
from scripts.common.guard import innermost_message
from scripts.common.model_file import save_model
from scripts.inference.geometry import window
from scripts.inference.inferer import IterMaskInferer, warn_of_planes, warn_of_spacing
from scripts.inference.volumes import case_of, find_inputs
from scripts.method.default import ProbabilisticIterMask
from scripts.method.networks import ReconstructionUNet
from scripts.tools.phantoms import phantom

SMALL = {"image_size": 16}


@pytest.fixture(scope="module")
def volume():
    """A phantom with a bright lesion (40 x 48 x 6) in FLAIR and T1, and its affine."""
    arrays = phantom(3, shape=(40, 48, 6), lesion="bright", contrast=1.0)
    return arrays, np.array([[4.0, 0, 0, -70], [0, 4, 0, -90], [0, 0, 8, -10], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Weights of a small network with random parameters and thresholds that part of the brain exceeds."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = partial(
            ReconstructionUNet,
            channels=4,
            channel_multipliers=(1, 2),
            residual_blocks=1,
            attention_levels=(1,),
            patch_size=2,
        )
        model = ProbabilisticIterMask(network, image_size=16, threshold=0.4)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_model(model, path)
    return path


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


def infer(model_file, output_dir, **options):
    return run_bundle(
        "inference", run_id="inference", model_file=str(model_file), output_dir=str(output_dir), **{**SMALL, **options}
    )


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
        "thick": nib.Nifti1Image(arrays["flair"], affine @ np.diag([1, 1, 5, 1])),
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
    assert "6 of 6 volumes are finished already." in capsys.readouterr().out
    assert os.stat(mask).st_mtime_ns == before
    (results / "PIR" / "PIR_anomaly_map.nii.gz").unlink()
    infer(model_file, results, dataset_dir=str(scans))
    assert "5 of 6 volumes are finished already." in capsys.readouterr().out
    assert (results / "PIR" / "PIR_anomaly_map.nii.gz").exists() and os.stat(mask).st_mtime_ns == before
    infer(model_file, results, dataset_dir=str(scans), threshold_scale=0.9)
    assert "finished already" not in capsys.readouterr().out
    assert os.stat(mask).st_mtime_ns > before


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
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "good_anomaly_map.nii.gz",
        "good_anomaly_mask.nii.gz",
        "good_record.json",
        "inference_record.json",
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
    assert "3 of 3 volumes are finished already." in capsys.readouterr().out


def test_results_beside_the_scans_leave_scans_and_brain_masks_as_they_are(volume, model_file, tmp_path, capsys):
    arrays, affine = volume
    for case in ("A", "B"):
        write(tmp_path, case, arrays["flair"], affine)
        write(tmp_path, case, arrays["mask"].astype(np.uint8), affine, "mask")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    for _ in range(2):
        infer(model_file, tmp_path, dataset_dir=str(tmp_path), brain_mask="mask")
    assert "2 scans found" in (printed := capsys.readouterr().out) and "2 of 2 volumes are finished" in printed
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.rglob("*_anomaly_mask.nii.gz"))) == 2


def test_results_beside_loose_scans_are_not_taken_for_scans(volume, model_file, tmp_path, capsys):
    names = ["1.2.840.3.nii.gz", "1.2.840.7.nii.gz"]
    for number, name in enumerate(names):
        nib.save(nib.Nifti1Image(np.roll(volume[0]["flair"], number, 0), volume[1]), tmp_path / name)
    for _ in range(2):
        infer(model_file, tmp_path, dataset_dir=str(tmp_path))
    assert "2 of 2 volumes are finished already." in capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("path", "case"),
    [("a/B/B_flair.nii.gz", "B"), ("x_t1.nii", "x"), ("x_y.nii.gz", "x_y"), ("flair.nii.gz", "flair")],
)
def test_case_is_the_name_without_modality(path, case):
    assert case_of(path, ["flair", "t1"]) == case


def test_image_needs_a_file_for_each_modality(volume, tmp_path):
    path = write(tmp_path, "case", volume[0]["flair"], volume[1])
    with pytest.raises(ValueError, match="has 1 files, but the model takes 2 modalities"):
        find_inputs("", ["flair", "t1"], image=str(path))


class TestInferer:
    @pytest.fixture
    def network(self, model_file, small_network):
        from scripts.common.model_file import load_model

        return load_model(model_file)

    @pytest.fixture
    def scan(self):
        arrays = phantom(5, shape=(40, 48, 7), lesion="bright")
        return torch.from_numpy(np.stack([arrays["flair"].astype(np.float32) / 100, arrays["mask"]]))[None]

    def test_volume_is_its_slices(self, network, scan):
        infer = IterMaskInferer(outputs=("mask", "anomaly_map"), batch_size=3)
        whole = infer(scan, network)
        slices = torch.cat([infer(scan[..., k], network) for k in range(7)])
        torch.testing.assert_close(whole[0].movedim(-1, 0), slices, rtol=0, atol=1e-5)

    def test_outputs_come_in_the_asked_order(self, network, scan):
        names = ("passes", "reconstruction", "anomaly_map", "mask")
        found = IterMaskInferer(outputs=names)(scan, network)
        assert found.shape == (1, 4, 40, 48, 7)
        for channel, name in enumerate(names):
            alone = IterMaskInferer(outputs=[name])(scan, network)
            torch.testing.assert_close(found[:, channel : channel + 1], alone, rtol=0, atol=1e-5)

    def test_empty_slices_are_skipped(self, network, scan):
        scan[..., 2] = 0
        found = IterMaskInferer(outputs=("mask", "passes"))(scan, network)
        assert not found[..., 2].any() and (found[:, 1, :, :, 3] > 0).all()

    def test_options_reach_the_refinement(self, network, scan):
        sizes = [float(IterMaskInferer(threshold_scale=s)(scan, network).sum()) for s in (0.5, 1, 2)]
        assert sizes[0] > sizes[1] > sizes[2]
        passes = [float(IterMaskInferer(["passes"], max_passes=n, stop_shrink=0)(scan, network).max()) for n in (1, 3)]
        assert passes[0] < passes[1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"outputs": ["masks"]}, "`outputs` must be some of mask, anomaly_map"),
            ({"stop_shrink": 10}, "did you pass a percentage"),
            ({"max_passes": 0}, "`max_passes` must be a whole number from 1"),
            ({"batch_size": 0}, "`batch_size` must be a whole number from 1"),
            ({"threshold_scale": 0}, "`threshold_scale` must be a number above 0"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            IterMaskInferer(**options)

    def test_wrong_channels(self, network):
        with pytest.raises(ValueError, match="check `modalities`"):
            IterMaskInferer()(torch.zeros(1, 3, 16, 16), network)


@pytest.mark.parametrize(
    ("field_of_view", "expected"),
    [
        ((0, 0), [0, 0, 0, 0]),  # unknown
        ((40, 60), [-2, 2, 3, -3]),  # the slice's own: the brain still comes to the center
        ((39.5, 60.5), [-2, 2, 3, -3]),  # nearly
        (
            (20, 30),
            [-7, -3, -2, -8],
        ),  # rows 2 to 11 and columns 7 to 16 around a brain in rows 4 to 9, columns 10 to 13
        ((40, 90), [3, 7, 3, -3]),
    ],
)
def test_window_is_the_field_of_view_around_the_brain(field_of_view, expected):
    brain = torch.zeros(5, 20, 20, dtype=torch.bool)
    brain[2, 4:10, 10:14] = True
    spacing = torch.tensor([2.0, 3.0])
    assert window(brain, spacing, torch.tensor(field_of_view, dtype=torch.float32)) == expected
    assert window(torch.zeros_like(brain), spacing, torch.tensor([10.0, 10.0])) == [0, 0, 0, 0]


def test_room_around_the_brain_does_not_change_the_mask(volume, model_file, tmp_path):
    arrays, affine = volume
    weights = torch.load(model_file, weights_only=True)
    weights["field_of_view"] = torch.tensor([160.0, 192.0])
    torch.save(weights, tmp_path / "model.pt")
    data = arrays["flair"]
    rows, columns = (np.flatnonzero((data > 0).any(axis=axis)) for axis in ((1, 2), (0, 2)))
    write(tmp_path / "scans", "one_column_more", np.pad(data, ((0, 0), (1, 0), (0, 0))), affine)
    wide = np.pad(data, ((11, 19), (7, 30), (0, 0)))
    write(tmp_path / "scans", "wide", wide, affine)
    shift = [-((rows[0] + rows[-1] - 39) // 2), -((columns[0] + columns[-1] - 47) // 2)]
    write(tmp_path / "scans", "centered", np.roll(data, shift, (0, 1)), affine)
    infer(tmp_path / "model.pt", tmp_path / "out", dataset_dir=str(tmp_path / "scans"))
    mask = outputs(tmp_path / "out", "wide")[0].get_fdata()
    assert mask.shape == wide.shape and mask.any()
    inner = np.roll(mask[11:-19, 7:-30], shift, (0, 1))
    np.testing.assert_array_equal(inner, outputs(tmp_path / "out", "centered")[0].get_fdata())
    one_more = outputs(tmp_path / "out", "one_column_more")[0].get_fdata()
    np.testing.assert_array_equal(np.roll(one_more[:, 1:], shift, (0, 1)), inner)


def test_inferer_leaves_arrays_without_meta_data_as_they_are(model):
    volume = torch.randn(1, 2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    volume[:, 1] = 1
    model.field_of_view.fill_(10.0)
    model.image_size = 32
    result = IterMaskInferer()(volume, model)
    assert result.shape == (1, 1, 32, 48, 3) and result.any()


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ([0.0, 20.0], None),
        ([-30.0, -12.0], "scan.nii.gz: 2 of 4 axial slices lie more than 10 mm from those .*z = -30 to -12 mm"),
        ([math.inf, -math.inf], None),
    ],
)
def test_slices_far_from_those_of_training_are_told(planes, message, caplog):
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]))
    affine[2, 3] = -10
    with_brain = torch.tensor([False, True, True, True, True, False])  # at -7, -4, -1 and 2 mm
    warn_of_planes(with_brain, affine, torch.tensor(planes), "scan.nii.gz")
    assert bool(caplog.records) == bool(message)
    if message:
        assert re.search(message, caplog.text)


def test_small_areas_are_dropped_on_request():
    class Marks(torch.nn.Module):
        modalities, image_size = 1, 16

        def refine(self, image, brain_mask, **options):
            mask = torch.zeros_like(brain_mask)
            mask[..., 2:5, 2:5] = mask[..., 10, 10] = mask[..., 11, 11] = True
            return mask, image, image, torch.ones(len(image), dtype=torch.int64)

    slices = torch.ones(2, 2, 16, 16)
    sizes = {
        least: IterMaskInferer(least_pixels=least)(slices, Marks()).sum(dim=(1, 2, 3)).tolist()
        for least in (0, 2, 3, 9, 10)
    }
    assert sizes == {0: [11, 11], 2: [11, 11], 3: [9, 9], 9: [9, 9], 10: [0, 0]}


@pytest.mark.parametrize(
    ("spacing", "field_of_view", "told"),
    [
        ((1, 1, 1), (157, 189), False),
        ((0.5, 0.5, 3), (157, 189), False),
        ((2, 2, 2), (157, 189), True),
        ((1, 1, 5), (157, 189), True),
        ((2, 2, 2), (0, 0), False),
        ((1, 1, 5), (0, 0), True),
    ],
)
def test_voxels_coarser_than_the_network_s_pixels_are_told(spacing, field_of_view, told, caplog):
    warn_of_spacing(torch.tensor(spacing).float(), torch.tensor(field_of_view).float(), 128, "scan.nii.gz")
    assert ("scan.nii.gz: voxels of" in caplog.text and "do not trust the mask" in caplog.text) is told
