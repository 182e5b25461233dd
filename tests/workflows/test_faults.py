"""Runs that are killed at any moment, and storage that fails: the next run finishes, and nothing is half written.

The long form kills each step at 30 random moments and fills the disk at 11 sizes:
``python -m pytest tests/workflows/test_faults.py -m slow -s``
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Command, last_error, temporary_files
from conftest import CONFIGS, make_scan, save_small_model
from scripts.common.model_file import save_model
from scripts.method.itermask import IterMask
from scripts.method.networks import ReconstructionUNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

MODALITIES = ["flair", "t1"]
PLAIN = {"brain_extraction": "background"}


def flat(content, name=""):
    """Name and value of everything in nested containers; tensors as their bytes."""
    if isinstance(content, dict):
        return {key: value for part in content for key, value in flat(content[part], f"{name}.{part}").items()}
    if isinstance(content, (list, tuple)):
        return flat(dict(enumerate(content)), name)
    return {name: content.numpy().tobytes() if isinstance(content, torch.Tensor) else content}


def tensors(path):
    return flat(torch.load(path, weights_only=True), path.name) if path.exists() else {}


class Preprocess:
    """Slices of six scans."""

    command = ("preprocess", "train")
    work = "scripts.data.dataset:compute_scan"

    def __init__(self, data):
        self.options = {"dataset_dir": data / "scans", "modalities": MODALITIES, "canvas_size": [32, 32], **PLAIN}

    def prepare(self, folder):
        return {**self.options, "output_dir": folder / "out"}

    def results(self, folder):
        return {path.name: path.read_bytes() for path in folder.glob("slices/[!.]*.pt")}

    def finished(self, folder):
        return folder.glob("slices/[!.]*.pt")


class Training:
    """A lesion network, 24 iterations."""

    command = ("training", "train")
    work = "scripts.training.lesion_batches:PrepareLesionBatch.__call__"

    def __init__(self, data):
        self.options = {"dataset_dir": data / "slices", "cache_dir": data / "cache", "planes": ["axial"], **PLAIN}
        self.options |= {"modalities": MODALITIES, "canvas_size": [16, 16], "resample#pixel_size": 6.0}
        self.options |= {"iterations": 24, "validation_interval": 4, "batch_size": 2, "learning_rate": 0.01}

    def prepare(self, folder):
        return {**self.options, "output_dir": folder / "out"}

    def results(self, folder):
        return tensors(folder / "model.pt") | tensors(folder / "checkpoint.pt")

    def finished(self, folder):
        return []


class Calibrate:
    """Another threshold for an IterMask."""

    command = ("calibrate", "calibrate")
    work = "scripts.training.calibration:hidden_errors"

    def __init__(self, data):
        self.options = {
            "dataset_dir": data / "slices",
            "slice_range": "$None",
            "model_file": data / "itermask.pt",
            **PLAIN,
        }
        self.options |= {"cache_dir": data / "itermask_cache", "false_positive_rate": 0.04, "batch_size": 1}

    def prepare(self, folder):
        return {**self.options, "output_dir": folder / "out"}

    def results(self, folder):
        return tensors(folder / "model.pt")

    def finished(self, folder):
        return []


class Inference:
    """Masks of six scans."""

    command = ("inference", "inference")
    work = "scripts.inference.inferer:IterMaskInferer.__call__"

    def __init__(self, data):
        self.options = {"dataset_dir": data / "scans", "model_file": data / "model.pt", **PLAIN}

    def prepare(self, folder):
        return {**self.options, "output_dir": folder / "out"}

    def results(self, folder):
        images = {path.name: nib.load(path) for path in folder.glob("*/case*_*.nii.gz")}
        records = {path.name: json.loads(path.read_text()) for path in folder.glob("*/case*_record.json")}
        finished = {name: record for name, record in records.items() if "results" in record}
        for record in finished.values():
            del record["numbers"]["seconds"]
        return finished | {
            name: (image.get_fdata().tobytes(), image.affine.tobytes(), image.get_data_dtype())
            for name, image in images.items()
        }

    def finished(self, folder):
        records = [path for path in folder.glob("*/case*_record.json") if "results" in json.loads(path.read_text())]
        return [path for record in records for path in record.parent.glob("case*")]


class Evaluate:
    """Scores and pictures of two slices."""

    command = ("evaluate", "evaluate_slices")
    work = "scripts.inference.inferer:IterMaskInferer.__call__"

    def __init__(self, data):
        self.options = {
            "dataset_dir": data / "slices",
            "slice_range": "$None",
            "model_file": data / "itermask.pt",
            **PLAIN,
        }

    def prepare(self, folder):
        return {**self.options, "output_dir": folder / "out"}

    def results(self, folder):
        files = [path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".png")]
        return {path.name: path.read_bytes() for path in files if ".partial." not in path.name}


STEPS = {step.__name__.lower(): step for step in (Preprocess, Training, Calibrate, Inference, Evaluate)}
KILLED = ("preprocess", "training", "calibrate", "inference")


@pytest.fixture(scope="module")
def data(tmp_path_factory, training_scans):
    """Scans, scans of one slice, and a model of each method."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "slices").symlink_to(training_scans)
    for number in range(6):
        make_scan(folder / "scans", f"case{number}", lesion={}, affine=np.diag([6.0, 6, 6, 1]))
    save_small_model(folder / "model.pt", MODALITIES)
    network = partial(ReconstructionUNet, channels=4, channel_multipliers=(1, 2), residual_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(IterMask(network, MODALITIES, 16, radius=2, threshold=1.0), folder / "itermask.pt")
    return folder


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """Gives each step with the results and the seconds of a run that nothing disturbed."""
    known = {}

    def get(name):
        if name not in known:
            step, folder = STEPS[name](data), tmp_path_factory.mktemp(name)
            code, output, seconds = Command(*step.command, folder, **step.prepare(folder)).wait()
            assert code == 0, output
            assert not temporary_files(folder)
            known[name] = step, step.results(folder / "out"), seconds, folder / "out"
        return known[name]

    return get


def times(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


def finish(step, folder, options, expected):
    """Run a step again after a fault: it ends well, its results are the expected ones, finished work stays."""
    checkpoint = folder / "out" / "checkpoint.pt"
    iteration = torch.load(checkpoint, weights_only=True)["trainer"]["iteration"] if checkpoint.exists() else None
    finished = times(step.finished(folder / "out")) if hasattr(step, "finished") else {}
    code, output, _ = Command(*step.command, folder, **options).wait()
    assert code == 0, output
    assert step.results(folder / "out") == expected and expected
    assert all(".partial." in path for path in temporary_files(folder))  # of the run that was killed, for a day
    assert times(finished) == finished
    if iteration is not None:
        assert f"Training goes on from iteration {iteration} of" in output
    return finished


def is_whole(name, step, folder, expected):
    """Whether what a killed run has left under its final names is what an undisturbed run writes."""
    left = step.results(folder)
    if name == "training":  # a checkpoint of any iteration, but no model before the end
        return {key: value for key, value in left.items() if key.startswith("model.pt")}.items() <= expected.items()
    return left.items() <= expected.items()


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KILLED)
def test_run_killed_at_any_moment_goes_on_to_the_same_results(reference, tmp_path, name, kills):
    step, expected, seconds, _ = reference(name)
    seed = f"{name} {kills}"
    moments, done, leftovers, kept = random.Random(seed), 0, 0, 0
    for trial in range(5 * kills):
        folder = tmp_path / str(trial)
        folder.mkdir()
        options = step.prepare(folder)
        moment = moments.uniform(0, seconds)
        killed = Command(*step.command, folder, **options).kill_after(moment)
        leftovers += bool(temporary_files(folder))
        print(f"seed {seed!r}: {'killed' if killed else 'ended'} after {moment:.3f} of {seconds:.3f} s")
        assert is_whole(name, step, folder / "out", expected)
        kept += len(finish(step, folder, options, expected))
        done += killed
        seconds = seconds if killed else moment  # the machine was busier when the reference was made
        if done == kills:
            break
    print(f"{name}: {done} kills, {leftovers} left temporary files, {kept} finished files were kept")
    assert done == kills


@pytest.mark.parametrize("name", STEPS)
def test_run_killed_in_the_middle_of_writing_goes_on(reference, tmp_path, name):
    step, expected, *_ = reference(name)
    options = step.prepare(tmp_path)
    code, output, _ = Command(*step.command, tmp_path, fault=("os:fsync", 1, signal.SIGKILL), **options).wait()
    assert code == -signal.SIGKILL, output
    assert len([path for path in temporary_files(tmp_path) if ".partial." in path]) == 1
    finish(step, tmp_path, options, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", [name for name in STEPS if name != "training"])
def test_signal_ends_a_run_with_one_line(reference, tmp_path, name, number):
    step, expected, *_ = reference(name)
    options = step.prepare(tmp_path)
    code, output, _ = Command(*step.command, tmp_path, fault=(step.work, 1, number), **options).wait()
    line = {signal.SIGINT: "interrupted: ", signal.SIGTERM: "SIGTERM: stopped; "}[number]
    assert code == 1 and "Traceback" not in output
    assert output.strip().splitlines()[-1] == f"{line}run the same command again to go on."
    assert not temporary_files(tmp_path)
    finish(step, tmp_path, options, expected)


@pytest.mark.parametrize(
    ("number", "call"),
    [(signal.SIGINT, 8), *((signal.SIGTERM, call) for call in (1, 4, 5, 35))],
    ids=["in an epoch", "first", "last of an epoch", "validation", "last validation"],
)
def test_signal_saves_a_checkpoint_from_which_training_goes_on(reference, tmp_path, number, call):
    """With 4 iterations and 2 batches of validation in each of the 6 epochs, the batches 5 and 35 are of validation."""
    step, expected, *_ = reference("training")
    options = step.prepare(tmp_path)
    code, output, _ = Command(*step.command, tmp_path, fault=(step.work, call, number), **options).wait()
    assert code == 1 and "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"{number.name}: training stopped, saved ") and last.endswith(
        "run the same command to go on."
    )
    checkpoint = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    epoch, batch = divmod(call - 1, 6)
    assert checkpoint["trainer"]["iteration"] == 4 * epoch + min(batch + 1, 4)
    finish(step, tmp_path, options, expected)


def test_signal_after_the_last_iteration_ends_a_training_with_one_line(reference, tmp_path):
    step, expected, *_ = reference("training")
    options = step.prepare(tmp_path)
    fault = ("scripts.training.checkpoint:TrainingCheckpoint.stop_interrupted", 1, signal.SIGTERM)
    code, output, _ = Command(*step.command, tmp_path, fault=fault, **options).wait()
    assert code == 1 and output.strip().splitlines()[-1].startswith("SIGTERM: stopped; ")
    assert not (tmp_path / "out" / "model.pt").exists()
    finish(step, tmp_path, options, expected)


def test_events_of_a_killed_training_can_be_read(reference, tmp_path):
    step, expected, *_ = reference("training")
    options = step.prepare(tmp_path)
    Command(*step.command, tmp_path, fault=(step.work, 20, signal.SIGKILL), **options).wait()
    finish(step, tmp_path, options, expected)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars("train_loss")} == set(range(1, 25))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_a_command_and_its_workers_is_one_line(tmp_path, number):
    for case in range(40):
        make_scan(tmp_path / "scans", f"case{case:02d}", lesion={}, affine=np.diag([6.0, 6, 6, 1]))
    command = [sys.executable, "-m", "monai.bundle", "run", "preprocess", "--config_file", str(CONFIGS / "train.json")]
    command += [
        "--dataset_dir",
        "scans",
        "--output_dir",
        "out",
        "--num_workers",
        "2",
        "--brain_extraction",
        "background",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "out").glob("slices/*.pt")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.strip()]
    assert process.returncode == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 1}[number]
    assert "Traceback" not in errors and lines[-1].endswith("run the same command again to go on.")
    assert not temporary_files(tmp_path / "out")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def kibibytes(folder):
    """What a folder takes on a tmpfs, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def fails_with_one_sentence(step, folder, options, expected, **faults):
    """A step that cannot write says so, and leaves nothing but whole files; gives the sentence."""
    message = last_error(*Command(*step.command, folder, **faults, **options).wait()[:2])
    assert message.startswith("error: Cannot write") and message.endswith("(ITERMASK_TRACEBACK=1 shows where)")
    assert is_whole(type(step).__name__.lower(), step, folder / "out", expected)
    assert not temporary_files(folder)
    return message


LIMITS = {"preprocess": 700, "training": 20_000, "calibrate": 5000, "inference": 500, "evaluate": 4000}


@pytest.mark.parametrize("name", STEPS)
def test_file_that_cannot_be_written_to_its_end_is_one_sentence(reference, tmp_path, name):
    step, expected, *_ = reference(name)
    options = step.prepare(tmp_path)
    message = fails_with_one_sentence(step, tmp_path, options, expected, file_limit=LIMITS[name])
    assert str(tmp_path / "out") in message and (name == "preprocess" or "(File too large)" in message)
    finish(step, tmp_path, options, expected)


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system, by default at ``out`` in the test's folder, until the end of the test."""
    folder = tmp_path / "out"

    def call(*options, at=folder):
        at.mkdir(exist_ok=True)
        result = subprocess.run(["mount", *options, str(at)], capture_output=True, text=True)
        if result.returncode and not os.path.ismount(at):
            pytest.skip(f"mounting a file system is not permitted: {result.stderr.strip()}")
        assert result.returncode == 0, result.stderr
        mounted.append(at)

    mounted = []
    yield call
    for at in dict.fromkeys(mounted):
        subprocess.run(["umount", str(at)], check=True)


NARROW = [0.5, *(pytest.param(part / 12, marks=pytest.mark.slow) for part in range(1, 12) if part != 6)]


@pytest.mark.parametrize("part", NARROW)
@pytest.mark.parametrize("name", STEPS)
def test_full_disk_is_one_sentence_and_more_room_finishes_the_run(reference, tmp_path, mount, name, part):
    step, expected, _, whole = reference(name)
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs")
    options = step.prepare(tmp_path)
    room = kibibytes(tmp_path / "out") + max(8, int(part * kibibytes(whole)))
    mount("-o", f"remount,size={room}k")
    print(f"{name}: {room} KiB for {kibibytes(whole)} KiB")
    fails_with_one_sentence(step, tmp_path, options, expected)
    mount("-o", "remount,size=64m")
    finish(step, tmp_path, options, expected)


def test_events_that_cannot_be_written_are_one_sentence(reference, tmp_path, mount):
    step, expected, *_ = reference("training")
    options = step.prepare(tmp_path)
    (tmp_path / "out").mkdir()
    mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", at=tmp_path / "out" / "tensorboard")
    message = fails_with_one_sentence(step, tmp_path, options, expected)
    assert message.startswith("error: Cannot write (No space left on device)")
    mount("-o", "remount,size=64m", at=tmp_path / "out" / "tensorboard")
    finish(step, tmp_path, options, expected)


@pytest.mark.parametrize("name", STEPS)
def test_output_folder_that_is_read_only_is_told_before_any_work(reference, tmp_path, mount, name):
    step, expected, *_ = reference(name)
    mount("-t", "tmpfs", "tmpfs")
    options = step.prepare(tmp_path)
    mount("-o", "remount,ro")
    fault = (step.work, 1, signal.SIGKILL)
    message = last_error(*Command(*step.command, tmp_path, fault=fault, **options).wait()[:2])
    assert message.startswith("error: Cannot write in the output folder") and "Read-only file system" in message
    mount("-o", "remount,rw")
    finish(step, tmp_path, options, expected)


def test_report_that_cannot_be_written_is_one_sentence(reference, tmp_path):
    step, *_ = reference("evaluate")
    options = step.prepare(tmp_path)
    for run_id in ("evaluate", "report"):
        assert Command(run_id, "evaluate_slices", tmp_path, **options).wait()[0] == 0
    report = tmp_path / "out" / "report.html"
    earlier = report.read_bytes()
    message = last_error(*Command("report", "evaluate_slices", tmp_path, file_limit=6000, **options).wait()[:2])
    assert message.startswith(f"error: Cannot write {report} (File too large): ")
    assert report.read_bytes() == earlier and not temporary_files(tmp_path)
    code, output, _ = Command("report", "evaluate_slices", tmp_path, **options).wait()
    assert code == 0 and report.read_text().startswith("<!DOCTYPE html>"), output


@pytest.mark.parametrize("name", ["training", "inference"])
def test_second_of_two_runs_into_one_folder_is_refused_and_the_first_ends_well(reference, tmp_path, name):
    """The first is at work, and goes on when the second has ended."""
    step, expected, *_ = reference(name)
    options = step.prepare(tmp_path)
    (tmp_path / "second").mkdir()
    wait = f"touch {tmp_path}/working; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    first = Command(*step.command, tmp_path, fault=(step.work, 2, ["sh", "-c", wait]), **options)
    while not (tmp_path / "working").exists():
        assert first.process.is_alive(), first.wait()
        time.sleep(0.02)
    code, output, _ = Command(*step.command, tmp_path / "second", **options).wait()
    (tmp_path / "go").touch()
    assert f"Another run is writing {tmp_path}/out/" in last_error(code, output)  # of inference one scan alone
    code, output, _ = first.wait()
    assert code == 0, output
    assert step.results(tmp_path / "out") == expected and not temporary_files(tmp_path)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "empty"])
def test_result_that_is_gone_or_empty_is_made_again(reference, tmp_path, spoil):
    step, expected, *_ = reference("inference")
    options = step.prepare(tmp_path)
    finish(step, tmp_path, options, expected)
    before = times(path for path in step.finished(tmp_path / "out") if path.parent.name != "case3")
    spoil(tmp_path / "out" / "case3" / "case3_anomaly_mask.nii.gz")
    code, output, _ = Command(*step.command, tmp_path, **options).wait()
    assert code == 0, output
    assert step.results(tmp_path / "out") == expected and times(before) == before
