"""Two modalities as channels of one model, the whole way on phantoms."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import run_bundle
from scripts.tools.phantoms import make_phantoms

MODALITIES = ["flair", "t2"]
CASE = "phantom_testing_000"  # a bright lesion


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Scans of 24 healthy phantoms to train on, 8 for validation and 9 with a lesion."""
    folder = tmp_path_factory.mktemp("phantoms")
    return make_phantoms(folder, 24, 8, 9, seed=0, shape=(48, 56, 12), num_workers=0)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """The folder of a model of FLAIR and T2 after 300 iterations."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"modalities": MODALITIES, "slice_range": [3, 9], "num_workers": 0}
    run_bundle("preprocess", dataset_dir=str(phantoms), output_dir=str(folder / "slices"), **options)
    options = {"iterations": 300, "validation_interval": 50, "dataset_dir": str(folder / "slices")}
    run_bundle("train", "demo", output_dir=str(folder / "run"), **options, **model_of(folder))
    return folder


def model_of(folder):
    return {"modalities": MODALITIES, "image_size": 48, "model_file": str(folder / "model.pt")}


def test_model_of_two_modalities_is_ahead_of_thresholding_them(trained, tmp_path):
    options = {"dataset_dir": str(trained / "slices"), "output_dir": str(tmp_path), "pictures": False}
    run_bundle("evaluate_slices", **options, **model_of(trained))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dice"] > summary["baseline_smoothed_dice"] + 0.1
    assert summary["average_precision"] > summary["baseline_smoothed_average_precision"] + 0.1


def test_both_modalities_reach_the_model_in_their_order(trained, phantoms, tmp_path):
    label = nib.load(phantoms / CASE / f"{CASE}_seg.nii.gz").get_fdata() > 0
    scores = {}
    for order in ("flair t2", "t2 flair", "flair flair", "t2 t2"):
        images = []
        for channel, modality in enumerate(order.split()):  # names of no modality, so that any order is taken
            images.append(str(tmp_path / f"{order} {channel}.nii.gz"))
            shutil.copy(phantoms / CASE / f"{CASE}_{modality}.nii.gz", images[-1])
        output = tmp_path / order
        run_bundle("inference", image=images, output_dir=str(output), **model_of(trained))
        mask = nib.load(next(output.glob("*/*_anomaly_mask.nii.gz"))).get_fdata() > 0
        scores[order] = 2 * np.sum(mask & label) / (mask.sum() + label.sum())
    best = scores.pop("flair t2")
    assert best > 0.5 and best > max(scores.values()) + 0.1
