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
from conftest import CONFIGS, SMALL_NETWORK, run_bundle
from monai.bundle import ConfigParser
from scripts.common.guard import innermost_message
from scripts.evaluation.pictures import to_display
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
