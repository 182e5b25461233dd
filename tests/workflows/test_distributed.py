"""Several processes, with gloo on this machine's CPU, through the configs and commands of the documentation."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import files_of, run_bundle, write_nifti

SPACING = np.diag([5.0, 5.0, 5.0, 1.0])


def start(folder, run_id, configs, **options):
    """Start ``torchrun --nproc_per_node 2 -m monai.bundle run`` with configs of the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = folder / "arguments.json"
    arguments.write_text(json.dumps({"config_file": files_of(*configs), **options}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", run_id, "--args_file", str(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
    )


def ended(process, code=0):
    """The output of a process that ends well, or with an error."""
    output, _ = process.communicate(timeout=500)
    assert (process.returncode != 0) == (code != 0), output
    return output


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Five brains, each with a lesion and its label."""
    folder = tmp_path_factory.mktemp("scans")
    axes = np.meshgrid(*(np.linspace(-1, 1, number) for number in (28, 34, 30)), indexing="ij")
    brain = sum(axis**2 for axis in axes) < 0.8
    for number, case in enumerate("abcde"):
        lesion = sum((axis - 0.05 * number) ** 2 for axis in axes) < 0.03
        noise = np.random.default_rng(number).normal(400, 40, brain.shape)
        write_nifti(folder / case / f"{case}_flair.nii.gz", (brain * (noise + 400 * lesion)).astype(np.int16), SPACING)
        write_nifti(folder / case / f"{case}_seg.nii.gz", lesion.astype(np.uint8), SPACING)
    return folder


def contents(folder):
    names = ["summary.json", "cases.csv", "curves.csv"]
    return {name: (folder / name).read_text() for name in names}


def test_processes_evaluate_to_the_files_of_one(scans, tmp_path):
    options = {"dataset_dir": str(scans), "pictures": False, "baselines": {}}
    run_bundle("evaluate", run_id="evaluate", output_dir=str(tmp_path / "alone"), **options)
    configs = ["evaluate", "multi_gpu_evaluate"]
    ended(start(tmp_path / "run", "evaluate", configs, output_dir=str(tmp_path / "together"), **options))
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def cases_of(folder):
    with (folder / "volumes.csv").open(newline="") as table:
        return [row["case"] for row in csv.DictReader(table)]


def test_bad_scan_of_one_process_does_not_stop_the_others(scans, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for scan in scans.iterdir():
        (folder / scan.name).symlink_to(scan)
    (folder / "a").unlink()
    (folder / "a").mkdir()
    (folder / "a/a_flair.nii.gz").write_bytes(b"no scan")
    output = ended(start(tmp_path, "inference", ["inference"], dataset_dir=str(folder), output_dir="out"), code=1)
    assert cases_of(tmp_path / "out") == [*"bcde"], output
    assert "1 of 3 cases failed, a (the others are done" in output


def test_jobs_of_an_array_segment_each_scan_once(scans, tmp_path, monkeypatch):
    """They need not know of each other, nor run at the same time."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = {}
    for rank, cases in (("0", "ace"), ("1", "bd")):
        monkeypatch.setenv("RANK", rank)
        run_bundle("inference", run_id="inference", dataset_dir=str(scans), output_dir=str(tmp_path))
        found = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*_anomaly_mask.nii.gz")}
        assert {path.parent.name for path in found.keys() - done.keys()} == {*cases} and done.items() <= found.items()
        done = found
    assert cases_of(tmp_path) == [*"abcde"]
