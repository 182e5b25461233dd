"""Trainings that go wrong, or must not begin, stop with what to do, and what was good stays."""

import math
import shutil

import pytest
import torch
from conftest import CONFIGS, run_bundle, warnings_of
from scripts.common.errors import innermost_message
from scripts.training import losses


def train(folder, slices, override=None, **options):
    defaults = {"iterations": 8, "validation_interval": 2, "batch_size": 2, "output_dir": str(folder)}
    return run_bundle("train", override, run_id="training", **(defaults | slices | options))


def refusal(folder, slices, **options):
    """What a training says that must not begin; the files that are there stay as they are."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps it
        train(folder, slices, **options)
    assert {path: path.read_bytes() for path in before} == before
    return innermost_message(error.value)


@pytest.mark.parametrize("override", [None, "paper"])
def test_normal_training_warns_of_nothing(tmp_path, two_modalities, caplog, override):
    train(tmp_path, two_modalities, override, iterations=80, validation_interval=40, learning_rate=0.01)
    assert warnings_of(caplog) == [] and (tmp_path / "model.pt").exists()


def test_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path, two_modalities, monkeypatch):
    """The loss of the sixth iteration is no number."""
    loss, trained = losses.lesion_loss, []

    def spoiled(prediction, target):
        trained.extend([True] * torch.is_grad_enabled())
        return loss(prediction, target) * (math.nan if len(trained) == 6 else 1)

    monkeypatch.setattr(losses, "lesion_loss", spoiled)
    message = refusal(tmp_path, two_modalities)
    assert message.startswith("The loss became nan at iteration 6: ") and "run the same command again" in message
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 4 and not (tmp_path / "model.pt").exists()
    monkeypatch.undo()
    train(tmp_path, two_modalities)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for name, value in weights.items() if name.startswith("network."))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, two_modalities):
    """A folder with a finished training of two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, two_modalities, iterations=2)
    return folder


@pytest.fixture
def finished(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_folder_that_holds_a_training_is_not_trained_in_anew(finished, two_modalities):
    message = refusal(finished, two_modalities, resume=False)
    assert message.startswith(f"{finished}/checkpoint.pt holds a training already")
    (finished / "checkpoint.pt").unlink()
    train(finished, two_modalities, iterations=2, seed=1, resume=False)


def test_training_goes_on_with_its_own_slices_alone(finished, tmp_path, training_scans, two_modalities):
    moved = {**two_modalities, "dataset_dir": str(shutil.copytree(training_scans, tmp_path / "moved"))}
    train(finished, moved, iterations=4)
    names = (tmp_path / "moved" / "split_training.txt").read_text().split()
    message = refusal(finished, moved, iterations=6, split_training=names[1:])
    assert message.startswith(f"The checkpoint {finished}/checkpoint.pt belongs to another training (`slices` was ")


def test_file_in_the_place_of_the_model_is_not_replaced(finished, tmp_path, two_modalities):
    """Neither that of another training, nor one that was changed since, nor that of the bundle."""
    other = {"model_file": str(finished / "model.pt")}
    message = refusal(tmp_path / "other", two_modalities, **other)
    assert message.startswith(f"{finished}/model.pt is in the way, and no earlier output of this command")
    message = refusal(finished, two_modalities, iterations=4, model_file=str(finished / "checkpoint.pt"))
    assert message.startswith(f"`model_file` is {finished}/checkpoint.pt, where the training writes its checkpoint")
    shipped = CONFIGS.parent / "models" / "model.pt"
    assert f"{shipped} is in the way" in refusal(tmp_path / "other", two_modalities, model_file=str(shipped))
    with (finished / "model.pt").open("ab") as file:
        file.write(b"changed")
    message = refusal(finished, two_modalities, iterations=4)
    assert message.startswith(f"{finished}/model.pt was changed since it was written")


def test_scans_of_other_modalities_are_refused_before_any_work(tmp_path, two_modalities):
    message = refusal(tmp_path, two_modalities, modalities=["flair", "pd"])
    assert "pd" in message and not (tmp_path / "checkpoint.pt").exists()
