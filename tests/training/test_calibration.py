"""Thresholds from healthy slices, and the end of a training."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import warnings_of
from scripts.common.model_file import load_model, save_model
from scripts.training.calibration import calibrate, exceeded_by, finish_training, recalibrate
from scripts.training.masks import random_squares


def test_threshold_is_exceeded_by_the_asked_fraction():
    values = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    threshold = exceeded_by(values, 0.2)
    assert int((values > threshold).sum()) == 20
    with pytest.raises(ValueError, match="No healthy pixel"):
        exceeded_by(values[:0], 0.2)


@pytest.fixture
def healthy(image, brain_mask):
    return [{"image": image, "brain_mask": brain_mask.float()}]


def test_calibration_sets_the_threshold_and_leaves_the_networks_as_they_are(model, healthy):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    thresholds = [calibrate(model.train(), healthy, random_squares, rate) for rate in (0.05, 0.5)]
    assert thresholds[0] > thresholds[1] > 0 and float(model.threshold) == pytest.approx(thresholds[1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name != "threshold")


@pytest.mark.parametrize(("scale", "words"), [(0.0, "impossible threshold 0"), (math.nan, "impossible threshold nan")])
def test_impossible_threshold_is_refused(model, healthy, monkeypatch, scale, words):
    monkeypatch.setattr("scripts.training.calibration.hidden_errors", lambda *_: torch.ones(50) * scale)
    with pytest.raises(RuntimeError, match=words):
        calibrate(model, healthy, random_squares)
    assert float(model.threshold) == 1


@pytest.mark.parametrize(("error", "count"), [(0.5, 0), (9.5, 1)])
def test_model_that_does_not_explain_healthy_slices_is_told(model, healthy, monkeypatch, caplog, error, count):
    monkeypatch.setattr("scripts.training.calibration.hidden_errors", lambda *_: torch.full((50,), error))
    calibrate(model, healthy, random_squares)
    assert len(told := warnings_of(caplog)) == count and all("explains the validation slices badly" in t for t in told)


def set_to(value):
    """A calibration that finds this threshold."""

    def calibration(model, batches):
        model.threshold.fill_(value)
        return value

    return calibration


def test_finished_model_holds_its_weights_its_threshold_and_what_its_slices_were(model, tmp_path, capsys):
    trained = torch.nn.Module()
    trained.masked = model.masked
    path = str(tmp_path / "model.pt")
    checkpoint = SimpleNamespace(path=tmp_path / "c.pt", stop_interrupted=lambda: None, has_made=lambda place: False)
    parts = [{"field_of_view": [150, 190], "plane": "axial", "position": position} for position in (-20, 30, 5)]
    dataset = SimpleNamespace(listed=False, scans=[parts])
    finish_training(model, trained, checkpoint, path, dataset, set_to(2.5))
    found = load_model(path)
    assert found.field_of_view.tolist() == [150, 190] and found.planes.tolist() == [-20, 30] and found.threshold == 2.5
    assert "Threshold 2.5" in capsys.readouterr().out
    checkpoint.has_made = lambda place: True  # nothing was left to do, so nothing changes
    finish_training(model, trained, checkpoint, path, dataset, set_to(7.0))
    assert load_model(path).threshold == 2.5 and "complete already" in capsys.readouterr().out


def test_new_threshold_goes_to_the_file_that_was_asked_for(model, tmp_path):
    first, second = str(tmp_path / "first.pt"), str(tmp_path / "second.pt")
    save_model(model, first)
    recalibrate(load_model(first), first, second, set_to(2.5), [])
    assert load_model(first).threshold == 1 and load_model(second).threshold == 2.5
