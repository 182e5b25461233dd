"""The release zip as a user of the Model Zoo meets it: built, verified, downloaded, loaded, exported."""

import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, files_of, make_scan, run_bundle, save_small_model
from monai.bundle import ConfigWorkflow, download, verify_metadata
from monai.bundle.utils import load_bundle_config
from scripts.common.model_file import load_model
from scripts.tools.release import NAME, make_release

BUNDLE = CONFIGS.parent
METADATA = json.loads((CONFIGS / "metadata.json").read_text())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The zip of the bundle."""
    return make_release(BUNDLE, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def downloaded(release, tmp_path_factory):
    """A folder with the bundle that `monai.bundle download` fetched from a server of this machine."""
    folder = tmp_path_factory.mktemp("downloads")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=release.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{release.name}"
            command = ["download", "--name", NAME, "--url", url, "--bundle_dir", str(folder), "--progress", "False"]
            run_python("-m", "monai.bundle", *command, cwd=folder)
        finally:
            server.shutdown()
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A skull-stripped scan of one modality."""
    case = make_scan(tmp_path_factory.mktemp("scans"), "a", modalities=("flair",))
    return case / "a_flair.nii.gz"


def run_python(*arguments, cwd):
    """Run Python in a folder, without this repository on its path; give what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_zip_that_leaves_its_folder_is_refused_by_the_download(tmp_path):
    evil = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../outside.txt", "x")
    with pytest.raises(ValueError, match="[Uu]nsafe|traversal|outside"):
        download(name=NAME, url=evil.as_uri(), bundle_dir=str(tmp_path / "in" / "deep"), progress=False)
    assert not list(tmp_path.rglob("outside.txt"))


def test_downloaded_bundle_segments_as_the_repository_does(downloaded, scan, tmp_path):
    config = str(downloaded / NAME / "configs" / "inference.json")
    (tmp_path / "empty").mkdir()
    command = ["-m", "monai.bundle", "run", "inference", "--config_file", config, "--image", str(scan)]
    run_python(*command, "--output_dir", "results", cwd=tmp_path / "empty")
    run_bundle("inference", image=str(scan), output_dir=str(tmp_path / "here"))
    for name in ("anomaly_mask", "anomaly_map"):
        there = nib.load(tmp_path / "empty" / "results" / "a" / f"a_{name}.nii.gz")
        here = nib.load(tmp_path / "here" / "a" / f"a_{name}.nii.gz")
        assert np.allclose(there.get_fdata(), here.get_fdata(), atol=1e-3)  # other threads sum in another order
        assert np.array_equal(there.affine, here.affine)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["results"]


def test_downloaded_bundle_loads_with_its_weights(downloaded):
    code = (
        "import sys, torch; from monai.bundle import load\n"
        f"model = load({NAME!r}, bundle_dir={str(downloaded)!r}, source='github')\n"
        "import scripts; print(scripts.__path__[0])\n"
        "print(type(model).__name__, float(model.low_threshold), int(model(torch.zeros(1, 2, 128, 128)).sum()))"
    )
    place, found = run_python("-c", code, cwd=downloaded / NAME).strip().splitlines()[-2:]
    weights = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert Path(place).resolve().parent == (downloaded / NAME).resolve()
    assert found == f"LesionNetwork {float(weights['low_threshold'])} 0"


def test_downloaded_bundle_has_the_files_of_the_model_zoo(downloaded):
    root = downloaded / NAME
    for name in ("configs/metadata.json", "configs/inference.json", "configs/train.json", "models/model.pt"):
        assert (root / name).is_file()
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        assert len((root / name).read_text()) > 500
    headings = (root / "docs" / "README.md").read_text()
    for section in (
        "# Model Overview",
        "## Data",
        "## Training configuration",
        "## Performance",
        "## MONAI Bundle Commands",
    ):
        assert f"\n{section}\n" in f"\n{headings}"
    large = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size > 25e6]
    assert not large
    assert load_bundle_config(str(root), "inference.json").get("network_def")


@pytest.mark.parametrize("name", ["train", "evaluate_slices", "evaluate", "inference"])
def test_monai_finds_every_property_of_the_downloaded_bundle(downloaded, name, training_scans, tmp_path):
    root = downloaded / NAME
    modalities = ["flair", "t1"]
    model_file = save_small_model(tmp_path / "model.pt", modalities)
    workflow = ConfigWorkflow(
        [str(root / "configs" / Path(path).name) for path in files_of(name)],
        workflow_type="train" if name == "train" else "infer",
        logging_file=False,
        dataset_dir=str(training_scans),
        output_dir=str(tmp_path),
        modalities=modalities,
        model_file=str(model_file),
        **({} if name == "inference" else {"slice_range": None}),
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_metadata_follows_a_strict_schema(tmp_path):
    schema = Path(__file__).parents[1] / "metadata_schema.json"
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))
    for broken in ({"version": "1"}, {"changelog": {}}, {"numpy_version": ">=1"}, {"misspelt": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(METADATA | broken, json.loads(schema.read_text()))


def test_metrics_of_the_metadata_are_those_of_the_model_card():
    card = (BUNDLE / "docs" / "README.md").read_text()
    for value in METADATA["eval_metrics"].values():
        assert f"{value:.3f}".lstrip("0") in card


def test_torchscript_of_the_bundle_gives_the_same_masks(downloaded, tmp_path):
    root = downloaded / NAME
    command = ["ckpt_export", "--net_id", "network_def", "--filepath", str(tmp_path / "model.ts")]
    command += ["--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    run_python("-m", "monai.bundle", *command, "--config_file", "configs/inference.json", cwd=root)
    model = load_model(str(root / "models" / "model.pt"))
    image = torch.randn(3, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.3
    image[:, :, 40:60, 30:50] += 3
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    brain = torch.from_numpy(rows**2 + columns**2 < 0.7)[None, None]
    slices = torch.cat([image, brain.expand(3, -1, -1, -1).float()], dim=1)
    exported = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        assert torch.equal(exported(slices), model(slices)) and model(slices).any()
