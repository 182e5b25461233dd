"""Whole volumes: the network of their own is trained beside that for slices, and inference and evaluation use it."""

import csv
import json
import math
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL_NETWORK, run_bundle, write_nifti
from scripts.common.errors import innermost_message
from scripts.common.model_file import load_model, with_lesions
from scripts.inference import inferer
from scripts.method import former_volume as method
from scripts.tools.phantoms import phantom

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
TRAINING = {"iterations": 2, "validation_interval": 2, "batch_size": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Phantoms of 2 mm: two without lesion, one with."""
    root = tmp_path_factory.mktemp("scans")
    for name, lesion in (("a", None), ("b", None), ("c", "bright")):
        arrays = phantom(ord(name), shape=(64, 72, 60), lesion=lesion, contrast=0.9)
        for key in ("flair", "seg"):
            write_nifti(root / name / f"{name}_{key}.nii.gz", arrays[key].astype(np.int16), AFFINE)
    return root


@pytest.fixture(scope="module")
def slices(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("slices")
    run_bundle(
        "preprocess", dataset_dir=str(scans), output_dir=str(output), split_training=["a"], split_validation=["b"],
        split_testing=None, slice_range=None, slice_step=6, planes=["axial", "coronal", "sagittal"],
        certainly_healthy=True, num_workers=0,
    )  # fmt: skip
    return output


@pytest.fixture(scope="module")
def model_file(slices, tmp_path_factory):
    """A model file with both networks, each trained for two iterations."""
    folder = tmp_path_factory.mktemp("model")
    options = {**TRAINING, "dataset_dir": str(slices), "model_file": str(folder / "model.pt")}
    run_bundle("train", **SMALL_NETWORK, **options, image_size=32, output_dir=str(folder / "slices"))
    before = torch.load(folder / "model.pt", weights_only=True)
    run_bundle("train", "volumes", **options, crop_size=[64, 96], output_dir=str(folder / "volumes"))
    after = torch.load(folder / "model.pt", weights_only=True)
    assert {name for name in after if name.startswith("lesions.")}
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "description")
    return folder / "model.pt"


def test_model_file_says_that_it_holds_the_network(model_file, slices, tmp_path):
    model = load_model(str(model_file))
    assert model.networks == ["masked", "lesions"] and with_lesions(str(model_file)).lesions is not None
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("lesions.")}
    assert all(torch.isfinite(value).all() for value in weights.values())
    with pytest.raises(ValueError, match="`modalities` is"):
        with_lesions(str(model_file), modalities=["t1"])


def test_network_for_volumes_outlives_a_new_training_on_slices(model_file, slices, tmp_path):
    copy = tmp_path / "model.pt"
    copy.write_bytes(model_file.read_bytes())
    options = {**TRAINING, **SMALL_NETWORK, "dataset_dir": str(slices), "image_size": 32, "seed": 1, "run#2#anew": True}
    run_bundle("train", **options, model_file=str(copy), output_dir=str(tmp_path / "run"))
    before, after = (torch.load(file, weights_only=True) for file in (model_file, copy))
    assert after.keys() == before.keys()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert "masked" in changed and "lesions" not in changed


def test_interrupted_training_goes_on_to_the_same_weights(model_file, slices, tmp_path):
    files = {}
    for name, lengths in {"once": [4], "twice": [2, 4]}.items():
        files[name] = tmp_path / f"{name}.pt"
        files[name].write_bytes(model_file.read_bytes())
        for iterations in lengths:
            run_bundle(
                "train", "volumes", **{**TRAINING, "iterations": iterations}, dataset_dir=str(slices),
                output_dir=str(tmp_path / name), model_file=str(files[name]), crop_size=[64, 96], warmup_iterations=1,
                scheduler={"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0},
                resume=iterations > lengths[0],
            )  # fmt: skip
    once, twice = (torch.load(file, weights_only=True) for file in files.values())
    assert all(torch.equal(once[name], value) for name, value in twice.items())


def test_inference_uses_it_for_whole_volumes_alone(model_file, scans, tmp_path, monkeypatch):
    seen = []
    segment = method.segment_volume
    monkeypatch.setattr(inferer, "segment_volume", lambda *given: seen.append(given) or segment(*given))
    run_bundle("inference", dataset_dir=str(scans), output_dir=str(tmp_path), model_file=str(model_file))
    assert len(seen) == 3 and [list(given[3]) for given in seen] == [[2, 2, 2]] * 3
    image = nib.load(scans / "c" / "c_flair.nii.gz")
    for name in ("anomaly_mask", "anomaly_map"):
        result = nib.load(tmp_path / "c" / f"c_{name}.nii.gz")
        assert result.shape == image.shape and np.array_equal(result.affine, image.affine)
    with (tmp_path / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outside_fraction"] for row in rows] == [""] * 3  # the network knows all levels
    found = np.asarray(nib.load(tmp_path / "c" / "c_anomaly_map.nii.gz").dataobj)
    assert found.min() == 0 and found.max() < 1  # a probability
    slab = tmp_path / "slab.nii.gz"
    nib.save(image.slicer[:, :, 20:30], slab)
    run_bundle("inference", image=str(slab), output_dir=str(tmp_path / "slab"), model_file=str(model_file))
    assert len(seen) == 3
    options = {"dataset_dir": str(scans), "exclude": ["a", "b"], "model_file": str(model_file)}
    before = read_bytes(tmp_path)
    for rule, number in {"prior": 3, "slope": 4}.items():  # the default is there already
        run_bundle("inference", **options, output_dir=str(tmp_path), threshold_rule=rule)
        assert len(seen) == number
        assert json.loads((tmp_path / "c" / "c_record.json").read_text())["threshold_rule"] == rule
    assert [given[6] for given in seen] == ["prior"] * 3 + ["slope"]
    changed = {name for name, content in read_bytes(tmp_path).items() if content != before[name]}
    assert "c_record.json" in changed and all(name.startswith("c_") for name in changed)


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("[abc]/*")}


def test_brain_mask_of_half_the_background_is_told_by_name(model_file, scans, tmp_path):
    voxels = np.pad(np.asarray(nib.load(scans / "a" / "a_flair.nii.gz").dataobj), 16)
    scan = write_nifti(tmp_path / "wide_flair.nii.gz", voxels, AFFINE)
    box = write_nifti(tmp_path / "box.nii.gz", np.ones(voxels.shape, np.uint8), AFFINE)
    options = {"image": str(scan), "brain_mask": str(box), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as error:
        run_bundle("inference", model_file=str(model_file), **options)
    assert re.search("wide_flair.* has one intensity in half of its brain: check the", innermost_message(error.value))
    assert not list(tmp_path.glob("out/*/*.nii.gz"))


def test_evaluation_scores_the_masks_of_inference(model_file, scans, tmp_path):
    run_bundle("inference", dataset_dir=str(scans), output_dir=str(tmp_path / "i"), model_file=str(model_file))
    run_bundle(
        "evaluate", dataset_dir=str(scans), output_dir=str(tmp_path / "e"), model_file=str(model_file), split=["c"]
    )
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    mask, label = (
        np.asarray(nib.load(path).dataobj) > 0
        for path in (tmp_path / "i" / "c" / "c_anomaly_mask.nii.gz", scans / "c" / "c_seg.nii.gz")
    )
    assert summary["dice"] == pytest.approx(2 * (mask & label).sum() / (mask.sum() + label.sum()), abs=1e-6)
    assert summary["threshold"] == pytest.approx(method.lowest_probability(1))
    assert not (tmp_path / "e" / "iterations.png").exists()


def test_the_threshold_of_an_evaluation_is_that_of_what_was_segmented(model_file, scans, tmp_path):
    """Slabs go to the network for slices, and a volume whose slices are scored stays a whole volume."""
    slabs = tmp_path / "slabs"
    for name in ("c_flair", "c_seg"):
        (slabs / "s").mkdir(parents=True, exist_ok=True)
        nib.save(nib.load(scans / "c" / f"{name}.nii.gz").slicer[:, :, 20:30], slabs / "s" / f"s_{name[2:]}.nii.gz")
    shutil.copytree(scans / "c", tmp_path / "both" / "c")
    shutil.copytree(slabs / "s", tmp_path / "both" / "s")

    def threshold(dataset_dir, **options):
        output = tmp_path / f"e{len(options)}{dataset_dir.name}"
        options |= {"dataset_dir": str(dataset_dir), "output_dir": str(output), "model_file": str(model_file)}
        run_bundle("evaluate", **options)
        return json.loads((output / "summary.json").read_text())["threshold"]

    of_slices = float(load_model(str(model_file)).threshold)
    assert threshold(slabs) == pytest.approx(of_slices)
    assert threshold(scans, split=["c"], slice_range=[20, 30]) == pytest.approx(method.lowest_probability(1))
    both = threshold(tmp_path / "both")
    assert both is None or math.isnan(both)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"threshold_rule": "slope"},
            "`threshold_rule` slope is for whole volumes, which this model has no network for",
        ),
        ({"threshold_rule": "tangent"}, "`threshold_rule` must be one of prior, slope, got 'tangent'"),
        ({"threshold_rule": None}, "`threshold_rule` must be one of prior, slope, got None"),
    ],
)
def test_rule_that_cannot_be_is_one_sentence_before_any_work(options, message, model, scans, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(Exception) as error:  # of MONAI, around the sentence
        run_bundle(
            "inference", dataset_dir=str(scans), output_dir=str(tmp_path / "out"),
            model_file=str(tmp_path / "model.pt"), **options,
        )  # fmt: skip
    assert innermost_message(error.value).startswith(message) and not (tmp_path / "out").exists()


def test_published_method_has_no_network_for_volumes(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected the default method"):
        with_lesions(str(tmp_path / "model.pt"))
