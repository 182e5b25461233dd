"""Trainings and calibrations that go wrong stop, or warn, with what to do, and what was good stays."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_bundle, warnings_of
from ignite.engine import Engine
from scripts.common.errors import innermost_message
from scripts.common.model_file import load_model
from scripts.training import corruption, losses
from scripts.training.handlers import WatchTraining


def train(folder, slices, **options):
    defaults = {"iterations": 8, "validation_interval": 2, "batch_size": 2, "model_file": str(folder / "model.pt")}
    return run_bundle(
        "train",
        options.pop("overlay", None),
        run_id="training",
        output_dir=str(folder),
        **(defaults | slices | options),
    )


@pytest.mark.parametrize("overlay", [None, "paper"])
def test_normal_training_warns_of_nothing(tmp_path, two_modalities, caplog, overlay):
    options = {"iterations": 80, "validation_interval": 8, "learning_rate": 0.01}
    train(tmp_path, two_modalities, overlay=overlay, **options)
    assert warnings_of(caplog) == [] and (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("part", ["loss", "validation error"])
def test_number_that_is_none_stops_and_leaves_the_last_good_checkpoint(tmp_path, two_modalities, monkeypatch, part):
    """The loss of the sixth iteration, or the error of the third validation, is no number."""
    loss, trained, validated = losses.masked_likelihood, [], []

    def spoiled(prediction, target):
        calls = trained if torch.is_grad_enabled() else validated
        calls.append(True)
        bad = len(trained) == 6 and (part == "loss" if torch.is_grad_enabled() else part != "loss")
        return loss(prediction, target) * (math.nan if bad else 1)

    monkeypatch.setattr(losses, "masked_likelihood", spoiled)
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        train(tmp_path, two_modalities)
    message = innermost_message(error.value)
    assert message.startswith(f"The {part} became nan at iteration 6: ") and "go on with --resume True" in message
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 4 and math.isfinite(checkpoint["best_metric"])
    assert not (tmp_path / "model.pt").exists()
    monkeypatch.undo()
    train(tmp_path, two_modalities, resume=True)
    assert math.isfinite(torch.load(tmp_path / "model.pt", weights_only=True)["threshold"])


def validated(errors, **options):
    """Let a `WatchTraining` see these validation errors."""
    validator = SimpleNamespace(state=SimpleNamespace(metrics={}, key_metric_name="error"))
    trainer = Engine(lambda engine, batch: validator.state.metrics.update(error=errors[engine.state.epoch - 1]))
    WatchTraining(torch.nn.Conv2d(1, 1, 1), validator, **options).attach(trainer)
    trainer.run([{"image": torch.zeros(1)}], max_epochs=len(errors))


FALLS = [9, 5, 3, 2]


@pytest.mark.parametrize(
    ("errors", "count"),
    [
        (FALLS + [3, 3.5, 4, 4.5, 5], 1),
        (FALLS + [3, 3.5, 4, 4.5, 5, 6, 7], 1),  # once
        (FALLS + [2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 4.5], 1),  # slow at first
        ([1, 2, 3, 4, 5, 6], 1),  # from the start
        ([-3, -4, -3.9, -3.8, -3.7, -3.6, -3.5], 1),  # a likelihood may be negative
        (FALLS + [4, 4, 4, 4, 4, 1.5, 4, 4, 4, 4, 4], 2),  # again after another best
        (FALLS + [3, 3.5, 4, 4.5], 0),  # not for long
        (FALLS + [2.5, 3, 2.5, 3, 2.5, 3], 0),  # a plateau
        (FALLS + [3, 3.5, 4, 4.5, 1.9, 3, 3.5], 0),
        (FALLS, 0),
    ],
)
def test_validation_error_that_rises_for_long_is_told_once(caplog, errors, count):
    validated(errors)
    told = warnings_of(caplog)
    assert len(told) == count and all("The best weights are kept; " in text for text in told)
    if errors[: len(FALLS)] == FALLS and count == 1:
        assert told[0].startswith("The validation error was lowest, 2, ")


def test_training_whose_validation_error_rises_keeps_its_best_weights(tmp_path, two_modalities, monkeypatch, caplog):
    loss, calls = losses.masked_likelihood, []

    def rising(prediction, target):
        calls.append(torch.is_grad_enabled())
        return loss(prediction, target) + (0 if torch.is_grad_enabled() else sum(calls) / 10)

    monkeypatch.setattr(losses, "masked_likelihood", rising)
    train(tmp_path, two_modalities, iterations=14)
    assert [text[:33] for text in warnings_of(caplog)] == ["The validation error was lowest, "]
    checkpoint, model = (torch.load(tmp_path / name, weights_only=True) for name in ("checkpoint.pt", "model.pt"))
    assert checkpoint["trainer"]["iteration"] == 14 and checkpoint["best_metric"] < 0.5
    best, newest = checkpoint["best_weights"], checkpoint["ema"]
    assert all(torch.equal(model[name], value) for name, value in best.items())
    assert not all(torch.equal(newest[f"module.{name}"], value) for name, value in best.items())


@pytest.mark.parametrize(("batch_size", "count"), [(1, 1), (2, 0)])
def test_batches_of_one_slice_are_told_once(tmp_path, two_modalities, caplog, batch_size, count):
    train(tmp_path, two_modalities, batch_size=batch_size, iterations=4)
    told = [text for text in warnings_of(caplog) if "batch normalization" in text]
    assert len(told) == count and all("set `batch_size` to 2 or more" in text for text in told)


def test_last_batch_of_a_pass_over_the_slices_is_whole(tmp_path, two_modalities, monkeypatch):
    """Six slices in batches of four: the second batch takes two of the next pass."""
    sizes = []
    call = corruption.PrepareMaskedBatch.__call__

    def watched(self, batch, *arguments, **options):
        sizes.append((self.augment, len(batch["image"])))
        return call(self, batch, *arguments, **options)

    monkeypatch.setattr(corruption.PrepareMaskedBatch, "__call__", watched)
    train(tmp_path, two_modalities, batch_size=4, iterations=5, validation_interval=5)
    assert [size for augmented, size in sizes if augmented] == [4] * 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_modalities):
    folder = tmp_path_factory.mktemp("trained")
    train(folder, two_modalities, iterations=120, validation_interval=40, batch_size=4, learning_rate=0.01)
    return folder


def calibrate(trained, tmp_path, slices, **options):
    shutil.copy(trained / "model.pt", tmp_path / "model.pt")
    run_bundle("train", run_id="calibrate", model_file=str(tmp_path / "model.pt"), **(slices | options))


def test_calibration_on_healthy_slices_warns_of_nothing(trained, tmp_path, two_modalities, caplog):
    calibrate(trained, tmp_path, two_modalities)
    assert warnings_of(caplog) == []


def test_impossible_threshold_leaves_the_model_file(trained, tmp_path, two_modalities):
    """More than half of the brain is darker than expected, so the anomaly map of that fraction is 0."""
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        calibrate(trained, tmp_path, two_modalities, exceed_fraction=0.9, first_fraction=0.95)
    assert "are impossible (threshold 0, " in innermost_message(error.value)
    assert (tmp_path / "model.pt").read_bytes() == (trained / "model.pt").read_bytes()


def test_calibration_on_slices_that_are_not_healthy_is_told(trained, tmp_path, two_modalities, training_scans, caplog):
    """They have a large bright lesion in front."""
    shutil.copytree(training_scans, tmp_path / "slices")
    for path in (tmp_path / "slices").glob("validation_*_image.npy"):
        image = np.load(path)
        lesion = (image > -3) & (np.arange(image.shape[1])[:, None] > 16)
        np.save(path, np.where(lesion, image + 6, image).astype(np.float32))
    calibrate(trained, tmp_path, two_modalities, dataset_dir=str(tmp_path / "slices"))
    assert any("explains the validation slices badly" in text for text in warnings_of(caplog))


def sentence(folder, slices, **options):
    """What a training says that must not begin; the folder is as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        train(folder, slices, **options)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    return innermost_message(error.value)


@pytest.fixture
def finished(tmp_path, two_modalities):
    """A folder with a finished training of two iterations."""
    train(tmp_path / "run", two_modalities, iterations=2)
    return tmp_path / "run"


def test_folder_that_holds_a_training_is_not_trained_in_anew(finished, two_modalities):
    message = sentence(finished, two_modalities, seed=1)
    assert message.startswith(f"{finished}/checkpoint.pt holds a training already")
    train(finished, two_modalities, iterations=2, resume=True)  # the same command again
    (finished / "checkpoint.pt").unlink()
    train(finished, two_modalities, iterations=2, seed=1)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_training_does_not_go_on_with_other_slices(finished, tmp_path, training_scans, two_modalities, split):
    moved = {**two_modalities, "dataset_dir": str(tmp_path / "moved")}
    shutil.copytree(training_scans, tmp_path / "moved")
    train(finished, moved, iterations=4, resume=True)  # the same slices in another place
    image = next((tmp_path / "moved").glob(f"{split}_1_image.npy"))
    np.save(image, np.load(image) + 0.1)
    message = sentence(finished, moved, iterations=6, resume=True)
    assert message.startswith(
        f"The checkpoint {finished}/checkpoint.pt belongs to another training (the slices for {split} are others"
    )


def test_training_does_not_go_on_without_some_of_its_slices(finished, tmp_path, training_scans, two_modalities):
    shutil.copytree(training_scans, tmp_path / "fewer")
    content = json.loads((training_scans / "datalist.json").read_text())
    (tmp_path / "fewer" / "datalist.json").write_text(json.dumps({**content, "training": content["training"][:-1]}))
    fewer = {**two_modalities, "dataset_dir": str(tmp_path / "fewer")}
    assert "(the slices for training are others" in sentence(finished, fewer, iterations=4, resume=True)


def test_training_without_a_model_file_leaves_the_weights_of_the_bundle(tmp_path, two_modalities):
    """Its model lies beside its checkpoint; `calibrate` and volumes.json take none that they were not given."""
    shipped = CONFIGS.parent / "models" / "model.pt"
    before = shipped.read_bytes()
    options = {**two_modalities, "output_dir": str(tmp_path / "run"), "batch_size": 2}
    options |= {"iterations": 2, "validation_interval": 2}
    run_bundle("train", run_id="training", **options)
    run_bundle("train", run_id="training", **options | {"resume": True, "iterations": 4})
    assert load_model(tmp_path / "run" / "model.pt").modality_names == ["flair", "t1"]
    options["output_dir"] = str(tmp_path / "other")
    for overlay, run_id in ((None, "calibrate"), ("volumes", "training")):
        with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
            run_bundle("train", overlay, run_id=run_id, **options)
        assert innermost_message(error.value).startswith(f"No weights at {tmp_path}/other/model.pt: ")
    assert shipped.read_bytes() == before


def test_model_of_another_training_is_not_replaced(finished, tmp_path, two_modalities):
    for resume in (False, True):
        options = {"model_file": str(finished / "model.pt"), "resume": resume}
        message = sentence(tmp_path / "other", two_modalities, **options)
        assert message.startswith(f"{finished}/model.pt is in the way, and no earlier output of this command")


def test_model_that_was_calibrated_since_is_not_replaced(finished, two_modalities):
    run_bundle(
        "train",
        run_id="calibrate",
        model_file=str(finished / "model.pt"),
        **{**two_modalities, "exceed_fraction": 0.01},
    )
    message = sentence(finished, two_modalities, iterations=4, resume=True)
    assert message.startswith(f"{finished}/model.pt was changed since it was written")


def test_checkpoint_is_no_model_file(finished, two_modalities):
    checkpoint = str(finished / "checkpoint.pt")
    message = sentence(finished, two_modalities, model_file=checkpoint, resume=True)
    assert message.startswith(f"`model_file` is {checkpoint}, where this training writes something else")
    with pytest.raises(ValueError, match="checkpoint.pt is the checkpoint of a training and no model"):
        load_model(checkpoint)


def test_finished_training_that_is_repeated_changes_nothing(finished, two_modalities):
    before = {path: path.read_bytes() for path in finished.rglob("*.pt")}
    train(finished, two_modalities, iterations=2, resume=True)
    assert before == {path: path.read_bytes() for path in finished.rglob("*.pt")} and len(before) == 2


def test_checkpoint_from_elsewhere_is_gone_on_with(finished, tmp_path, two_modalities):
    (tmp_path / "new").mkdir()
    shutil.copy(finished / "checkpoint.pt", tmp_path / "new")
    for iterations in (4, 8):
        train(tmp_path / "new", two_modalities, iterations=iterations, resume=True)
    assert torch.load(tmp_path / "new/checkpoint.pt", weights_only=True)["trainer"]["iteration"] == 8
