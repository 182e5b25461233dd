"""The weights that come with the bundle: their model card, and what they do on real scans."""

import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import CONFIGS, needs_data, run_bundle
from monai.bundle import ConfigParser
from scripts.common.model_file import load_model
from scripts.method.description import from_description

BUNDLE = CONFIGS.parent
DATA = os.environ.get("ITERMASK_DATA")


def test_model_card_names_the_file():
    content = (BUNDLE / "models" / "model.pt").read_bytes()
    assert hashlib.sha256(content).hexdigest() in (BUNDLE / "docs" / "README.md").read_text()
    assert len(content) < 25e6


def test_weights_are_of_the_model_that_training_describes():
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.json")))
    described = parser.get_parsed_content("network_def")
    loaded = load_model(str(BUNDLE / "models" / "model.pt"))
    expected = from_description(described.description)
    assert expected | from_description(loaded.description) == expected
    assert loaded.low_threshold < loaded.high_threshold and loaded.slice_low_threshold < loaded.slice_high_threshold


@pytest.mark.data
@needs_data
def test_results_are_those_of_the_model_card(tmp_path):
    options = {"dataset_dir": f"{DATA}/soop2d", "slice_range": "$None", "pictures": False}
    run_bundle("evaluate_slices", run_id="evaluate", output_dir=str(tmp_path), **options)
    summary = json.loads((tmp_path / "summary.json").read_text())
    text = (BUNDLE / "docs" / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| this model |")).split("|")
    assert summary["cases"] == 273 and summary["dice"] == pytest.approx(float(row[2].split()[0]), abs=0.002)
    assert summary["average_precision"] > summary["baseline_smoothed_average_precision"] + 0.1


def turned(image, axcodes):
    start = nib.orientations.io_orientation(image.affine)
    return image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axcodes)))


@pytest.mark.data
@needs_data
def test_real_volume_in_every_orientation(tmp_path):
    folder = Path(DATA) / "open_ms" / "OPENMS_00019"
    flair, label = (nib.load(folder / f"OPENMS_00019_{name}.nii.gz").slicer[:, :, 96:116] for name in ("flair", "seg"))
    scans, results = tmp_path / "scans", tmp_path / "results"
    images = {code: turned(flair, code) for code in ("RAS", "LAS", "PIR")}
    images["thick"] = flair.slicer[:, :, ::5]
    for case, image in images.items():
        (scans / case).mkdir(parents=True)
        nib.save(image, scans / case / f"{case}_flair.nii.gz")
    run_bundle("inference", dataset_dir=str(scans), output_dir=str(results))
    masks = {case: nib.load(results / case / f"{case}_anomaly_mask.nii.gz") for case in images}
    for case, mask in masks.items():
        assert mask.shape == images[case].shape
        np.testing.assert_allclose(mask.affine, images[case].affine, atol=1e-4)
    expected = masks["RAS"].get_fdata()
    for case in ("LAS", "PIR"):
        np.testing.assert_array_equal(turned(masks[case], "RAS").get_fdata(), expected)
    lesion = label.get_fdata() > 0
    assert 2 * (lesion * expected).sum() / (lesion.sum() + expected.sum()) > 0.4
    assert masks["thick"].get_fdata().any()
