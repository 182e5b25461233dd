import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_bundle
from monai.bundle import ConfigParser
from scripts.common.errors import innermost_message
from scripts.common.model_file import load_model
from scripts.evaluation.pictures import to_display
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module", params=[None, "paper"], ids=["lesion network", "IterMask"])
def method(request):
    """The override config of a method."""
    return request.param


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_modalities, method):
    folder = tmp_path_factory.mktemp("trained")
    options = {"iterations": 120, "validation_interval": 40, "batch_size": 4, "learning_rate": 0.01}
    run_bundle("train", method, run_id="training", output_dir=str(folder), **options, **two_modalities)
    return folder


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_training_lowers_the_loss_and_shows_it(trained):
    recorded = events(trained)
    losses = [event.value for event in recorded.Scalars("train_loss")]
    assert len(losses) == 120
    assert sum(losses[-40:]) < sum(losses[:40])
    assert len(recorded.Scalars("validation_error")) == 3
    assert sorted(recorded.Tags()["images"]) == ["input_0_HW_0", "input_1_HW_0", "output_HW_0"]
    for name in recorded.Tags()["images"]:
        assert [(image.step, image.width, image.height) for image in recorded.Images(name)] == [
            (epoch, 16, 16) for epoch in (1, 2, 3)
        ]


def test_pictures_of_a_training_show_slices_as_those_of_an_evaluation_do():
    shown = {key: torch.rand(2, 3, 5, 7) for key in ("image", "label", "pred")}
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser["validate#evaluator"] = SimpleNamespace(state=SimpleNamespace(output=shown))
    handler = {key: parser.get_parsed_content(f"train#pictures#{key}_transform") for key in ("batch", "output")}
    pictures = [*handler["batch"](None), handler["output"](None)]
    for slices, picture in zip(shown.values(), pictures, strict=True):
        np.testing.assert_array_equal(picture[1, 2], to_display(slices[1, 2].numpy()))


def test_training_ends_with_its_networks_and_a_threshold(trained, method):
    model = load_model(str(trained / "model.pt"))
    assert all(torch.isfinite(value) for value in model.threshold_values())
    if method == "paper":
        assert model.field_of_view.tolist() == [96, 80] and model.planes.tolist() == [0, 0]
    weights = torch.load(trained / "checkpoint.pt", weights_only=True)["averaged" if method is None else "network"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_finished_training_is_left_as_it_is_and_a_longer_one_goes_on(trained, two_modalities, method, capsys, tmp_path):
    before = (trained / "model.pt").read_bytes()
    options = {"validation_interval": 40, "batch_size": 4, "learning_rate": 0.01, **two_modalities}
    run_bundle("train", method, output_dir=str(trained), iterations=120, **options)
    assert (trained / "model.pt").read_bytes() == before and "complete already" in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    run_bundle("train", method, output_dir=str(copy), iterations=160, **options)
    assert "goes on from iteration 120" in capsys.readouterr().out and (copy / "model.pt").read_bytes() != before


def test_same_seed_gives_the_same_weights(tmp_path, two_modalities, method):
    models = []
    for run in ("a", "b"):
        options = {"iterations": 6, "validation_interval": 3, "batch_size": 2, "seed": 4, **two_modalities}
        run_bundle("train", method, output_dir=str(tmp_path / run), **options)
        models.append(torch.load(tmp_path / run / "model.pt", weights_only=True))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.slow
def test_compiled_training_has_the_same_validation_error(tmp_path, two_modalities, method):
    errors = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        options = {"iterations": 2, "batch_size": 2, "compile": compiled, "output_dir": str(folder)}
        run_bundle("train", method, **options, **two_modalities)
        errors.append(events(folder).Scalars("validation_error")[-1].value)
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)


def train_in_subprocess(folder, options):
    arguments = folder / "arguments.json"
    lengths = {"batch_size": 2, "validation_interval": 30, "iterations": 90}
    arguments.write_text(json.dumps({**options, **lengths, "output_dir": str(folder)}))
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--args_file", str(arguments)]
    command += ["--config_file", str(CONFIGS / "train.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_training_resumes_to_the_same_weights(tmp_path, two_modalities, number):
    options = {name: value for name, value in two_modalities.items() if name != "image_size"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    process = train_in_subprocess(whole, options)
    assert process.wait(400) == 0
    process.stdout.close()
    process = train_in_subprocess(broken, options)
    while not (broken / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert "SIGTERM: training stopped, saved" in output and "Traceback" not in output
    assert not (broken / "model.pt").exists()
    process = train_in_subprocess(broken, options)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0 and "Training goes on from iteration" in output
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_calibration_needs_the_model_file_alone_and_finds_its_threshold_again(tmp_path, two_modalities):
    """What training has measured is measured again, to the last bit, whatever describes the model."""
    own = {"radius": 3, "sigma": 0.5, "initial_fraction": 0.4, "upper_fraction": 0.8}
    options = {"iterations": 6, "validation_interval": 3, "batch_size": 2}
    run_bundle("train", "paper", output_dir=str(tmp_path / "a"), **options, **own, **two_modalities)
    trained, again = tmp_path / "a" / "model.pt", tmp_path / "b" / "model.pt"
    scans = {"dataset_dir": two_modalities["dataset_dir"], "slice_range": "$None"}
    calibrate = {"model_file": str(trained), "output_dir": str(again.parent), "batch_size": 2, **scans}
    run_bundle("calibrate", run_id="calibrate", **calibrate)
    assert again.read_bytes() == trained.read_bytes()
    run_bundle("calibrate", run_id="calibrate", false_positive_rate=0.01, **calibrate)
    before, after = (torch.load(path, weights_only=True) for path in (trained, again))
    assert after["threshold"] > before["threshold"]
    assert all(torch.equal(after[name], before[name]) for name in before if name != "threshold")


def test_non_finite_loss_stops_the_training(tmp_path, two_modalities):
    options = {"iterations": 4, "validation_interval": 4, "learning_rate": 1e30, **two_modalities}
    with pytest.raises(RuntimeError) as error:
        run_bundle("train", "paper", output_dir=str(tmp_path), **options)
    assert "lower `learning_rate`" in innermost_message(error.value)
    assert not (tmp_path / "model.pt").exists()


def test_checkpoint_of_another_training_is_refused(trained, tmp_path, two_modalities, method):
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    options = {**two_modalities, "backbone#channels": 8}
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        run_bundle("train", method, output_dir=str(tmp_path), **options)
    assert "belongs to another training" in innermost_message(error.value)
