import json
import math
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, SMALL_NETWORK, files_of, run_bundle
from monai.bundle import ConfigParser
from scripts.common.errors import innermost_message
from scripts.evaluation.pictures import to_display
from scripts.method.description import from_description
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module", params=[None, "paper"], ids=["default", "paper"])
def method(request):
    """The overlay of a method."""
    return request.param


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_modality_slices, method):
    folder = tmp_path_factory.mktemp("trained")
    run_bundle(
        "train",
        method,
        run_id="training",
        output_dir=str(folder),
        model_file=str(folder / "model.pt"),
        iterations=120,
        validation_interval=40,
        batch_size=4,
        learning_rate=0.01,
        ema_momentum=0.1,
        **two_modality_slices,
    )
    return folder


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_training_lowers_the_loss_and_shows_it(trained, method):
    recorded = events(trained)
    losses = [event.value for event in recorded.Scalars("train_loss")]
    assert len(losses) == 120
    assert sum(losses[-20:]) < 0.5 * sum(losses[:10]) * 2
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


def test_training_ends_with_both_networks_and_a_threshold(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert torch.isfinite(weights["threshold"]) and weights["threshold"] > 0
    calibrated = {
        "threshold",
        "certain_threshold",
        "first_threshold",
        "deviation",
        "field_of_view",
        "planes",
        "description",
    }
    best = torch.load(trained / "checkpoint.pt", weights_only=True)["best_weights"]
    assert set(weights) - set(best) <= calibrated
    assert weights["field_of_view"].tolist() == [0, 0]  # these slices do not tell theirs
    assert weights["planes"].tolist() == [math.inf, -math.inf]
    assert all(torch.equal(weights[name], value) for name, value in best.items())


def test_same_seed_gives_the_same_weights(tmp_path, two_modality_slices):
    models = []
    for run in ("a", "b"):
        options = {"iterations": 6, "validation_interval": 3, "batch_size": 2, "seed": 4, **two_modality_slices}
        run_bundle("train", output_dir=str(tmp_path / run), model_file=str(tmp_path / run / "model.pt"), **options)
        models.append(torch.load(tmp_path / run / "model.pt", weights_only=True))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def train_in_subprocess(folder, slices_dir, *options):
    overlay = folder / "small.json"
    overlay.write_text(json.dumps(SMALL_NETWORK))
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", f"['{CONFIGS / 'train.json'}','{overlay}']", "--dataset_dir", str(slices_dir)]
    command += ["--output_dir", str(folder), "--model_file", str(folder / "model.pt"), "--modalities", "['flair','t1']"]
    command += [
        "--image_size",
        "16",
        "--batch_size",
        "2",
        "--validation_interval",
        "30",
        "--iterations",
        "90",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_training_resumes_to_the_same_weights(tmp_path, slices_dir, number):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    process = train_in_subprocess(whole, slices_dir)
    assert process.wait(120) == 0
    process.stdout.close()
    process = train_in_subprocess(broken, slices_dir)
    while not (broken / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGTERM:
        assert "SIGTERM: training stopped, saved" in output and "Traceback" not in output
    assert not (broken / "model.pt").exists()
    process = train_in_subprocess(broken, slices_dir, "--resume", "True")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Training goes on from iteration" in output
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_networks_can_be_trained_one_after_the_other(tmp_path, two_modality_slices, capsys):
    options = {"iterations": 4, "validation_interval": 4, "batch_size": 2, **two_modality_slices}
    file = tmp_path / "model.pt"
    run_bundle(
        "train", "paper", output_dir=str(tmp_path / "1"), model_file=str(file), trained_networks=["masked"], **options
    )
    first = torch.load(file, weights_only=True)
    assert torch.isnan(first["threshold"]) and "train first_iteration with the same" in capsys.readouterr().out
    options["trained_networks"] = ["first_iteration"]
    run_bundle("train", "paper", output_dir=str(tmp_path / "2"), model_file=str(file), **options)
    second = torch.load(file, weights_only=True)
    assert torch.isfinite(second["threshold"])
    for name, value in second.items():
        if name.startswith("masked."):
            assert torch.equal(value, first[name])


def test_calibrate_changes_the_threshold_alone(trained, tmp_path, two_modality_slices, method):
    before = torch.load(trained / "model.pt", weights_only=True)
    copy = tmp_path / "model.pt"
    copy.write_bytes((trained / "model.pt").read_bytes())
    options = {"exceed_fraction": 0.01, **two_modality_slices}
    run_bundle("train", method, run_id="calibrate", model_file=str(copy), **options)
    after = torch.load(copy, weights_only=True)
    assert after["threshold"] > before["threshold"]
    assert all(torch.equal(after[name], before[name]) for name in before if name != "threshold")
    with pytest.raises(RuntimeError):
        run_bundle("train", method, run_id="calibrate", model_file=str(copy), **options | {"exceed_fraction": 20})


OTHERS = {None: {"sign": "both", "sigma": 1.0, "mirror_weight": 0.0, "network_def#last_weight": 0.25}}
OTHERS["paper"] = {"radius": 3, "sigma": 0.5, "first_fraction": 0.4}


@pytest.fixture(scope="module")
def trained_otherwise(tmp_path_factory, two_modality_slices, method):
    """A model that differs from what the configs say in all that describes it."""
    folder = tmp_path_factory.mktemp("otherwise")
    options = {"iterations": 6, "validation_interval": 3, "batch_size": 2, **OTHERS[method], **two_modality_slices}
    run_bundle("train", method, "training", output_dir=str(folder), model_file=str(folder / "model.pt"), **options)
    return folder / "model.pt"


def test_calibrate_needs_no_id_of_the_training(trained_otherwise, tmp_path, slices_dir, method):
    """What training has measured is measured again, to the last bit."""
    copy = tmp_path / "model.pt"
    copy.write_bytes(trained_otherwise.read_bytes())
    options = {"dataset_dir": str(slices_dir), "batch_size": 2}  # masks are drawn for a batch
    run_bundle("train", method, run_id="calibrate", model_file=str(copy), **options)
    before, after = (torch.load(path, weights_only=True) for path in (trained_otherwise, copy))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    settings = from_description(after["description"])
    assert all(settings[name.removeprefix("network_def#")] == value for name, value in OTHERS[method].items())


def refused_calibration(monkeypatch, model_file, slices_dir, method, **given):
    """What `calibrate` says of ids on the command line, where the model file stays as it is."""
    before = model_file.read_bytes()
    arguments = [argument for name, value in given.items() for argument in (f"--{name}", str(value))]
    command = ["/monai/bundle/__main__.py", "run", "calibrate", "--config_file", str(files_of("train", method))]
    monkeypatch.setattr(sys, "argv", [*command, *arguments])
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        options = {"model_file": str(model_file), "dataset_dir": str(slices_dir), **given}
        run_bundle("train", method, run_id="calibrate", **options)
    assert model_file.read_bytes() == before
    return innermost_message(error.value)


@pytest.mark.parametrize("name", ["sigma", "image_size", "backbone#channels", "network_def#sigma"])
def test_calibrate_refuses_an_id_that_contradicts_the_model(trained_otherwise, slices_dir, method, monkeypatch, name):
    message = refused_calibration(monkeypatch, trained_otherwise, slices_dir, method, **{name: 8})
    assert message.startswith(f"`{name}` is 8, but the model in {trained_otherwise} was trained with ")


def test_calibrate_refuses_the_config_of_the_other_method(trained_otherwise, slices_dir, method, monkeypatch):
    other = "paper" if method is None else None
    message = refused_calibration(monkeypatch, trained_otherwise, slices_dir, other)
    assert message.startswith(f"{trained_otherwise} holds a model of the method ")
    assert ("leave configs/paper.json out" if method is None else "add configs/paper.json") in message


def test_non_finite_loss_stops_the_training(tmp_path, two_modality_slices):
    options = {"iterations": 4, "validation_interval": 4, "learning_rate": 1e30, **two_modality_slices}
    with pytest.raises(RuntimeError) as error:
        run_bundle("train", "paper", output_dir=str(tmp_path), model_file=str(tmp_path / "model.pt"), **options)
    assert "lower `learning_rate`" in innermost_message(error.value)
    assert not (tmp_path / "model.pt").exists()


def test_checkpoint_of_another_training_is_refused(trained, tmp_path, two_modality_slices, method):
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    options = {**two_modality_slices, "backbone#channels": 8}
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        run_bundle("train", method, output_dir=str(tmp_path), model_file=str(tmp_path / "m.pt"), resume=True, **options)
    assert "belongs to another training" in innermost_message(error.value)
