"""Thresholds from healthy slices."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import warnings_of
from scripts.common.model_file import load_model, save_model
from scripts.method.default import ProbabilisticIterMask, standardize
from scripts.training.calibration import (
    calibrate_scores,
    check_thresholds,
    exceeded_by,
    finish_training,
    recalibrate,
    warn_of_heavy_tail,
)


def test_threshold_is_exceeded_by_the_asked_fraction():
    values = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    threshold = exceeded_by(values, 0.2)
    assert int((values > threshold).sum()) == 20
    with pytest.raises(ValueError, match="did you pass a percentage"):
        exceeded_by(values, 20)
    with pytest.raises(ValueError, match="No healthy pixel"):
        exceeded_by(values[:0], 0.2)


def test_calibration_exceeds_the_asked_parts_of_the_healthy_brain(small_network, image, brain_mask):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ProbabilisticIterMask(small_network).eval()
    healthy = {"image": image.repeat(8, 1, 1, 1), "brain_mask": brain_mask.float().repeat(8, 1, 1, 1)}
    calibrate_scores(model, [healthy], first_fraction=0.2, exceed_fraction=0.05, certain_fraction=0.01)
    with torch.no_grad():
        scores = model.refine(healthy["image"], healthy["brain_mask"] > 0)[1][healthy["brain_mask"] > 0]
    assert float((scores > model.threshold).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float((scores > model.certain_threshold).float().mean()) == pytest.approx(0.01, abs=0.005)
    with pytest.raises(ValueError, match="Expected certain_fraction <= exceed_fraction <= first_fraction"):
        calibrate_scores(model, [healthy], first_fraction=0.01)


def test_deviation_is_that_of_healthy_scores(constant, image, brain_mask):
    calibrate_scores(constant, [{"image": image, "brain_mask": brain_mask.float()}])
    expected = (standardize(image, brain_mask)[0] - 0.5)[brain_mask].std()
    torch.testing.assert_close(constant.deviation, expected)


def test_calibration_leaves_a_network_in_training_as_it_is(small_network, image, brain_mask):
    model = ProbabilisticIterMask(small_network).train()
    before = {name: value.clone() for name, value in model.masked.state_dict().items()}
    calibrate_scores(model, [{"image": image, "brain_mask": brain_mask.float()}])
    assert all(torch.equal(before[name], value) for name, value in model.masked.state_dict().items())


def calibrated(**values):
    model = ProbabilisticIterMask(lambda **options: torch.nn.Identity(), threshold=1.0)
    model.certain_threshold.fill_(2.0)
    for name, value in values.items():
        getattr(model, name).copy_(torch.tensor(value))
    return model


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 0.0},
        {"threshold": -1.0},
        {"threshold": math.nan},
        {"threshold": math.inf, "certain_threshold": math.inf},
        {"threshold": 2.1},
        {"certain_threshold": math.nan},
        {"first_threshold": 0.0},
        {"deviation": 0.0},
        {"deviation": math.nan},
    ],
    ids=str,
)
def test_impossible_thresholds_are_refused(values):
    with pytest.raises(RuntimeError, match="are impossible"):
        check_thresholds(calibrated(**values))


@pytest.mark.parametrize(
    ("values", "count"),
    [({}, 0), ({"certain_threshold": 1.0}, 0), ({"deviation": 0.7}, 0), ({"deviation": 1.1}, 1)],
    ids=str,
)
def test_model_that_does_not_explain_healthy_slices_is_told(caplog, values, count):
    check_thresholds(calibrated(**values))
    assert len(told := warnings_of(caplog)) == count and all("explains the validation slices badly" in t for t in told)


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 0), (9.5, 1)])
def test_published_method_that_does_not_explain_healthy_slices_is_told(model, caplog, threshold, count):
    model.threshold.fill_(threshold)
    check_thresholds(model)
    assert len(warnings_of(caplog)) == count


@pytest.mark.parametrize(
    ("scores", "count"),
    [
        (lambda random: random.normal(size=200_000), 0),
        (lambda random: random.normal(size=200_000).clip(0), 0),
        (lambda random: random.laplace(size=200_000), 0),
        (lambda random: 3 + random.normal(size=200_000), 0),
        (lambda random: np.append(random.normal(size=198_000), random.uniform(6, 9, 2000)), 1),  # a lesion of 1 %
        (lambda random: random.standard_cauchy(size=200_000), 1),
    ],
    ids=["normal", "cut at 0", "Laplace", "shifted", "lesion", "Cauchy"],
)
def test_scores_that_lie_apart_are_told(caplog, scores, count):
    values = torch.from_numpy(scores(np.random.default_rng(0)))
    low, high = (float(values.quantile(1 - fraction)) for fraction in (0.02, 0.005))
    warn_of_heavy_tail(values, low, high, 0.02, 0.005)
    assert len(told := warnings_of(caplog)) == count and all("leave out those that are not healthy" in t for t in told)


def test_finished_model_holds_what_its_slices_were(model, tmp_path, capsys):
    best = {name: value + 1 for name, value in model.state_dict().items() if name.endswith("conv1.bias")}
    checkpoint = SimpleNamespace(path=tmp_path / "c.pt", interrupted=None, best_weights=best, best_metric=0.5)
    path = str(tmp_path / "model.pt")

    def calibration(model, batches):
        model.threshold.fill_(2.5)
        return 2.5

    slices = [{"field_of_view": [150, 190], "position": position} for position in (-20, 30, 5)]
    finish_training(model, checkpoint, ["first_iteration", "masked"], path, calibration, [], slices)
    found = load_model(path)
    assert found.field_of_view.tolist() == [150, 190] and found.planes.tolist() == [-20, 30]
    assert found.threshold == 2.5 and all(torch.equal(found.state_dict()[name], value) for name, value in best.items())
    assert "Best validation error 0.5, threshold 2.5" in capsys.readouterr().out


def test_new_threshold_goes_to_the_file_that_was_asked_for(model, small_network, tmp_path):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    save_model(model, first)
    before = first.read_bytes()

    def calibration(model, batches):
        model.threshold.fill_(2.5)
        return 2.5

    recalibrate(model, first, calibration, [], output_file=second)
    assert first.read_bytes() == before
    assert load_model(second).threshold == 2.5
    recalibrate(model, first, calibration, [])
    assert load_model(first).threshold == 2.5
