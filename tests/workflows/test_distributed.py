"""Several processes, with gloo on this machine's CPU, through the configs and commands of the documentation."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Command, last_error, temporary_files
from conftest import SMALL_NETWORK, files_of, free_port, make_scan, run_bundle, write_nifti
from monai.bundle import ConfigWorkflow
from scripts.common.model_file import save_model
from scripts.common.outputs import locked
from scripts.method.default import ProbabilisticIterMask
from scripts.method.networks import ReconstructionUNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = {"image_size": 16, **SMALL_NETWORK}


def start(processes, folder, run_id, configs, **options):
    """Start ``torchrun ... -m monai.bundle run`` with configs of the bundle.

    What sets the size of a network is for training alone: a model file says it everywhere else.
    """
    if configs[0] != "train":
        options = {key: value for key, value in options.items() if key not in SMALL_NETWORK}
    folder.mkdir(parents=True, exist_ok=True)
    arguments = folder / "arguments.json"
    arguments.write_text(json.dumps({"config_file": files_of(*configs), **options}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "monai.bundle", "run", run_id, "--args_file", str(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
    )


def finish(process):
    """The output of a process that must end well."""
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return output


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


# bfloat16 rounds away what is compared.
# A bias before batch norm has no gradient but rounding errors, which AdamW takes for a direction unless eps is large.
TRAINING = {
    "iterations": 20,
    "validation_interval": 10,
    "learning_rate": 0.003,
    "ema_momentum": 0.2,
    "seed": 3,
    "optimizer#eps": 1e-3,
    "precision": "float32",
}
PAPER = {"backbone#dropout": 0.0, "largest_gradient_norm": 1.0}


def training_options(folder, slices, **options):
    return {"output_dir": str(folder), "model_file": str(folder / "model.pt"), **TRAINING, **slices, **options}


def curve(folder, tag="train_loss"):
    files = list((folder / "tensorboard").glob("events*"))
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return files, [event.value for event in accumulator.Scalars(tag)]


def assert_same_models(*folders, **tolerance):
    """Weights and thresholds agree."""
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in folders)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **tolerance or {"rtol": 1e-4, "atol": 1e-4})


@pytest.fixture(scope="module", params=[None, "paper"], ids=["default", "paper"])
def method(request):
    """The overlay of a method, and what has to be set for one process and two to agree: no dropout."""
    return request.param, PAPER if request.param else {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, two_modalities, method):
    """One process with batches of four slices."""
    folder = tmp_path_factory.mktemp("alone")
    overlay, options = method
    run_bundle("train", overlay, "training", **training_options(folder, two_modalities, batch_size=4, **options))
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory, two_modalities, method):
    """Two processes with batches of two slices, with a folder for each, and what they print."""
    folder = tmp_path_factory.mktemp("together")
    overlay, options = method
    configs = ["train", *([overlay] if overlay else []), "multi_gpu_train"]
    options = training_options(folder, two_modalities, batch_size=2, **options)
    options["output_dir"] = f"$'{folder}/' + os.environ['RANK']"
    options["model_file"] = f"{options['output_dir']} + '/model.pt'"
    return folder, finish(start(2, folder, "training", configs, **options))


def test_two_processes_follow_one_with_twice_the_batch(alone, together):
    for tag, number in (("train_loss", 20), ("validation_error", 2)):
        expected, found = (curve(folder, tag)[1] for folder in (alone, together[0] / "0"))
        assert len(expected) == number and len(set(expected)) == number
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert_same_models(alone, together[0] / "0")


def test_first_process_alone_writes_and_speaks(alone, together):
    folder, output = together
    assert {path.name for path in (folder / "0").iterdir()} == {path.name for path in alone.iterdir()}
    assert not (folder / "1").exists()
    for words in ("Model: ", "Best validation error", "training [2/2]", "Saved "):
        assert output.count(words) >= 1
    assert output.count("Model: ") == 1 and output.count("Saved ") == 2


@pytest.fixture
def group_of_one(monkeypatch):
    """The environment of a process that torchrun started alone."""
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield
    assert not torch.distributed.is_initialized()
    idist.sync()  # Ignite forgets the group


def test_group_of_one_process_trains_bit_for_bit_as_without(tmp_path, two_modalities, group_of_one):
    options = {"batch_size": 2, "iterations": 3, "validation_interval": 3}
    for run, overlay in (("plain", None), ("group", "multi_gpu_train")):
        run_bundle("train", overlay, **training_options(tmp_path / run, two_modalities, **options))
    assert_same_models(tmp_path / "plain", tmp_path / "group", rtol=0, atol=0)


def test_checkpoint_that_not_all_processes_see_is_refused(tmp_path, two_modalities):
    options = training_options(tmp_path / "0", two_modalities, batch_size=4, iterations=2, validation_interval=2)
    run_bundle("train", run_id="training", **options)
    options |= {"batch_size": 2, "resume": True, "output_dir": f"$'{tmp_path}/' + os.environ['RANK']"}
    process = start(2, tmp_path, "training", ["train", "multi_gpu_train"], **options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "The processes go on from different iterations [2, 0]: set `output_dir` to a folder that all" in output


@pytest.mark.parametrize(
    ("name", "overlay"),
    [("train", "multi_gpu_train"), ("evaluate_slices", "multi_gpu_evaluate"), ("evaluate", "multi_gpu_evaluate")],
)
def test_monai_finds_every_property(name, overlay, training_scans, scans_dir, model_file, tmp_path, group_of_one):
    options = {"dataset_dir": str(scans_dir if name == "evaluate" else training_scans), "modalities": ["flair", "t1"]}
    options |= {"output_dir": str(tmp_path), "model_file": model_file(["flair", "t1"]), **SMALL}
    files = files_of(name, overlay)
    kind = "train" if name == "train" else "infer"
    if kind == "infer":  # the model file says the size of its network
        options = {key: value for key, value in options.items() if not key.startswith("backbone#")}
    workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **options)
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.finalize()


def rank_process(process, rank):
    """The process of one rank below torchrun."""
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return child
    raise AssertionError(f"torchrun has no process of rank {rank}")


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find a rank's process")


@needs_proc
def test_signal_stops_all_processes_with_one_checkpoint_and_training_resumes(tmp_path, two_modalities):
    options = {"iterations": 60, "validation_interval": 15}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_bundle("train", run_id="training", **training_options(whole, two_modalities, batch_size=4, **options))
    options = training_options(broken, two_modalities, batch_size=2, **options)
    written = 0
    for resume, to_one_rank in ((False, False), (True, True)):
        process = start(2, broken, "training", ["train", "multi_gpu_train"], resume=resume, **options)
        checkpoint = broken / "checkpoint.pt"
        wait_until(lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns > written, process)  # noqa: B023
        os.kill(rank_process(process, 1) if to_one_rank else process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode != 0 and output.count("SIGTERM: training stopped, saved") == 1
        assert not (broken / "model.pt").exists()
        written = checkpoint.stat().st_mtime_ns
    iteration = torch.load(checkpoint, weights_only=True)["trainer"]["iteration"]
    assert 15 < iteration < 60
    output = finish(start(2, broken, "training", ["train", "multi_gpu_train"], resume=True, **options))
    assert output.count(f"Training goes on from iteration {iteration} ") == 1
    assert_same_models(whole, broken, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Makes weights of a small random network for some modalities, with thresholds that some pixels exceed."""

    def make(modalities, threshold=0.4):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            options = {"channels": 4, "channel_multipliers": (1, 2), "residual_blocks": 1, "attention_levels": (1,)}
            network = partial(ReconstructionUNet, patch_size=2, **options)
            model = ProbabilisticIterMask(network, modalities, SMALL["image_size"], threshold=threshold)
        path = tmp_path_factory.mktemp("model") / "model.pt"
        save_model(model, path)
        return str(path)

    return make


@pytest.fixture
def one_thread():
    """The number of threads that the processes of torchrun have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("config", "processes", "batch_size", "order"),
    [
        ("evaluate_slices", 2, 2, None),  # two healthy slices and one; two labeled ones and none
        ("evaluate", 2, 8, ["b", "a", "c", "d", "e"]),  # three volumes and two; the second process has a
    ],
)
def test_any_number_of_processes_evaluates_to_the_same_files(
    config, processes, batch_size, order, training_scans, scans_dir, model_file, tmp_path, one_thread
):
    options = {"dataset_dir": str(training_scans), "modalities": ["flair", "t1"], "batch_size": batch_size, **SMALL}
    options |= {"model_file": model_file(["flair", "t1"], threshold=0.1), "stop_shrink": 0.0, "max_passes": 8}
    if config == "evaluate":
        options |= {"dataset_dir": str(scans_dir), "split": order}
        make_scan(scans_dir, "c", lesion={5: 12})
    run_bundle(config, run_id="evaluate", output_dir=str(tmp_path / "alone"), **options)
    process = start(
        processes,
        tmp_path / "arguments",
        "evaluate",
        [config, "multi_gpu_evaluate"],
        output_dir=str(tmp_path / "together"),
        **options,
    )
    output = finish(process)
    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "together")
    assert {"summary.json", "cases.csv", "curves.csv", "iterations.png"} <= expected.keys()
    assert {name for name in expected if expected[name] != found.get(name)} == set() and found.keys() == expected.keys()
    assert output.count("healthy slices; the upper bound") == 1


@pytest.fixture
def volumes_dir(tmp_path):
    """Seven volumes, large enough that a process can be stopped in between."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:40j, -1:1:48j]
    brain = (rows**2 + columns**2 < 0.8)[..., None]
    for case in "abcdefg":
        voxels = (random.integers(50, 900, (40, 48, 90)) * brain).astype(np.int16)
        write_nifti(tmp_path / "volumes" / case / f"{case}_flair.nii.gz", voxels)
    return tmp_path / "volumes"


def masks(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("[a-z]/*_anomaly_mask.nii.gz")}


def voxels(folder):
    """All results, read whole."""
    return {path.name: np.asanyarray(nib.load(path).dataobj) for path in folder.glob("[a-z]/[a-z]_*.nii.gz")}


def finished_cases(folder):
    """The cases whose record tells of results; one that is being written, whose name begins with a dot, does not."""
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/[!.]*_record.json")}
    return {case for case, record in records.items() if "results" in record}


def test_runs_of_single_scans_at_once_share_a_folder_and_its_tables(volumes_dir, model_file, tmp_path):
    """As a loop or an array of jobs starts them; a file lies where the last one's results would go."""
    options = {"model_file": model_file(["flair"]), "output_dir": tmp_path / "out", "max_passes": 1}
    (tmp_path / "out").mkdir(), (tmp_path / "out" / "d").write_text("mine")
    runs = {}
    for case in "abcd":
        (tmp_path / case).mkdir()
        image = volumes_dir / case / f"{case}_flair.nii.gz"
        runs[case] = Command("inference", "inference", tmp_path / case, **options, image=image)
    ended = {case: run.wait() for case, run in runs.items()}
    assert f"{tmp_path}/out/d is in the way, where a folder is needed" in last_error(*ended.pop("d")[:2])
    assert [code for code, *_ in ended.values()] == [0, 0, 0], ended
    with (tmp_path / "out" / "volumes.csv").open(newline="") as table:
        assert [row["case"] for row in csv.DictReader(table)] == [*"abc"]
    assert not temporary_files(tmp_path / "out") and (tmp_path / "out" / "d").read_text() == "mine"


@needs_proc
def test_bad_volume_of_one_process_does_not_stop_the_others(volumes_dir, model_file, tmp_path, one_thread):
    (volumes_dir / "a/a_flair.nii.gz").write_bytes(b"no scan")
    options = inference_options(volumes_dir, model_file(["flair"]), tmp_path / "out") | {"max_passes": 1}
    output, _ = start(2, tmp_path / "arguments", "inference", ["inference"], **options).communicate(timeout=180)
    assert finished_cases(tmp_path / "out") == set("bcdefg"), output
    with (tmp_path / "out/volumes.csv").open(newline="") as table:
        assert [row["case"] for row in csv.DictReader(table)] == [*"bcdefg"]
    assert "1 of 4 cases failed, a (the others are done" in output


def inference_options(volumes_dir, model_file, output_dir):
    return {
        "dataset_dir": str(volumes_dir),
        "output_dir": str(output_dir),
        "model_file": model_file,
        "stop_shrink": 0.0,
        **SMALL,
    }


def test_each_volume_is_segmented_by_one_process(volumes_dir, model_file, tmp_path, capsys):
    options = inference_options(volumes_dir, model_file(["flair"]), tmp_path / "out") | {
        "world_size": 2,
        "max_passes": 1,
    }
    done = {}
    for rank, cases in enumerate(("aceg", "bdf")):
        run_bundle("inference", run_id="inference", rank=rank, **options)
        assert set(masks(tmp_path / "out")) - set(done) == set(cases)
        assert done.items() <= masks(tmp_path / "out").items()
        done = masks(tmp_path / "out")
    assert "finished already" not in capsys.readouterr().out


@needs_proc
def test_killed_process_leaves_whole_files_and_the_next_run_does_what_is_missing(
    volumes_dir, model_file, tmp_path, one_thread
):
    options = inference_options(volumes_dir, model_file(["flair"]), tmp_path / "out")
    process = start(2, tmp_path / "arguments", "inference", ["inference"], **options)
    wait_until(lambda: "b" in finished_cases(tmp_path / "out"), process)
    os.kill(rank_process(process, 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    whole = voxels(tmp_path / "out")
    before = finished_cases(tmp_path / "out")
    assert {"b"} <= before < set("abcdefg") and {f"{case}_anomaly_mask.nii.gz" for case in before} <= whole.keys()
    first = masks(tmp_path / "out")

    output = finish(start(2, tmp_path / "arguments", "inference", ["inference"], **options))
    counts = re.findall(r"(\d) of (\d) scans are finished already", output)
    assert sum(int(finished) for finished, _ in counts) == len(before), output
    after = masks(tmp_path / "out")
    assert after.keys() == set("abcdefg") and all(after[case] == first[case] for case in before)
    run_bundle("inference", run_id="inference", **options | {"output_dir": str(tmp_path / "alone")})
    expected, found = voxels(tmp_path / "alone"), voxels(tmp_path / "out")
    assert len(expected) == 14 and found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
        if name in whole:
            np.testing.assert_array_equal(whole[name], expected[name])
    assert (tmp_path / "out/lesions.csv").read_bytes() == (tmp_path / "alone/lesions.csv").read_bytes()


def test_first_process_makes_the_slices_and_the_others_wait(scans_dir, tmp_path):
    options = {"dataset_dir": str(scans_dir), "modalities": ["flair", "t1"], "slice_range": [2, 9], "num_workers": 1}
    run_bundle("preprocess", output_dir=str(tmp_path / "alone"), **options)
    output = finish(
        start(2, tmp_path / "arguments", "preprocess", ["preprocess"], output_dir=str(tmp_path / "out"), **options)
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "alone") and len(contents(tmp_path / "out")) > 60
    assert output.count("training: 12 slices of 2 subjects") == output.count("Slices: ") == 1


@pytest.mark.parametrize("step", ["training", "evaluate"])
def test_second_run_into_a_folder_ends_all_its_processes_with_one_sentence(
    step, training_scans, volumes_dir, model_file, two_modalities, tmp_path, one_thread
):
    """Another run, here this test, writes in the folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    configs = [step]
    if step == "training":
        configs, options = ["train", "multi_gpu_train"], training_options(folder, two_modalities)
    else:
        configs = ["evaluate_slices", "multi_gpu_evaluate"]
        options = {
            "dataset_dir": str(training_scans),
            "output_dir": str(folder),
            "model_file": model_file(["flair", "t1"]),
        }
    with locked(folder / ("checkpoint.pt" if step == "training" else "summary.json")):
        process = start(2, tmp_path / "arguments", step, configs, **options)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and not list(folder.iterdir())
    sentences = re.findall(r"^(?:\[rank\d\]: )?((?:error: |SIG|interrupted|\w+Error: ).*)", output, re.MULTILINE)
    assert len(sentences) == 1 and sentences[0].startswith(f"error: Another run is writing {folder}"), output
