"""The model file remembers what it is: it needs no settings beside it, and refuses those that contradict it."""

import os
from functools import partial

import pytest
import torch
from monai.networks.nets import BasicUNet
from scripts.common.model_file import load_model, save_model, take_weights
from scripts.method.default import ProbabilisticIterMask
from scripts.method.description import DESCRIPTION_BYTES, from_description, to_description
from scripts.method.itermask import IterMask

DEFAULT = {"modalities": ["t1", "flair"], "image_size": 64, "sign": "both", "sigma": 1.0, "mirror_weight": 0.0}
PUBLISHED = {"modalities": ["t2"], "image_size": 32, "radius": 4.0, "sigma": 0.5, "first_fraction": 0.4}


def trained(method, network, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = method(network, threshold=0.8, **settings).eval()
    return model


@pytest.mark.parametrize(("method", "settings"), [(ProbabilisticIterMask, DEFAULT), (IterMask, PUBLISHED)])
def test_loaded_model_is_the_saved_one_without_any_setting(tmp_path, small_network, method, settings):
    scaling = {"upper_fraction": 0.98, "lower_fraction": 0.01, "lower_over_volume": True}
    model = trained(method, small_network, scaling=scaling, **settings)
    save_model(model, str(tmp_path / "model.pt"))
    loaded = load_model(str(tmp_path / "model.pt"))
    assert type(loaded) is method and not loaded.training
    assert from_description(loaded.description) == from_description(model.description)
    assert loaded.modality_names == settings["modalities"] and loaded.scaling == scaling
    image = torch.randn(1, model.modalities + 1, 32, 32, generator=torch.Generator().manual_seed(1))
    image[:, -1] = 1
    assert torch.equal(loaded(image), model(image)) and torch.equal(loaded.threshold, model.threshold)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modalities": ["flair", "t1"]}, r"`modalities` is \['flair', 't1'\], but the model in .* \['t1', 'flair'\]"),
        ({"sign": "bright"}, "`sign` is 'bright', but the model in .* was trained with 'both'"),
        ({"image_size": 128}, "`image_size` is 128, but the model in .* was trained with 64"),
        ({"lower_over_volume": True}, "`lower_over_volume` is True, but the model in .* was trained with False"),
        ({"radius": 15.0}, "`radius` is 15.0, but the model in .* was trained with None"),
    ],
)
def test_setting_that_contradicts_the_file_is_named(tmp_path, small_network, given, message):
    save_model(trained(ProbabilisticIterMask, small_network, **DEFAULT), str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "model.pt"), **given)
    assert load_model(str(tmp_path / "model.pt"), **DEFAULT, radius=None).sigma == 1.0


def test_file_without_description_says_what_is_assumed(tmp_path, small_network, caplog):
    model = trained(ProbabilisticIterMask, partial(small_network, channels=16))
    old = {name: value for name, value in model.state_dict().items() if name not in ("description", "deviation")}
    torch.save({**old, "deviations": torch.tensor([3.0, 2.0])}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds the weights of another network"):
        load_model(str(tmp_path / "model.pt"))
    loaded = load_model(str(tmp_path / "model.pt"), partial(small_network, channels=16), sign="both")
    assert loaded.deviation == 3 and loaded.both_signs and loaded.modality_names == ["flair"]
    assert "does not say how it was made; assumed: ProbabilisticIterMask, modalities ['flair']" in caplog.text
    assert "run `calibrate`" in caplog.text


@pytest.mark.parametrize("name", ["threshold", "certain_threshold", "first_threshold"])
def test_model_that_lacks_any_threshold_is_refused(tmp_path, small_network, name):
    model = trained(ProbabilisticIterMask, small_network)
    getattr(model, name).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="lacks a threshold"):
        model(torch.ones(1, 2, 16, 16))
    save_model(model, str(tmp_path / "model.pt"))
    with pytest.raises((RuntimeError, ValueError), match="threshold"):
        load_model(str(tmp_path / "model.pt"))


def test_network_of_another_kind_needs_its_overlay(tmp_path):
    network = partial(BasicUNet, spatial_dims=2, features=(4, 4, 4, 4, 4, 4))
    save_model(trained(ProbabilisticIterMask, network), str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="no ReconstructionUNet"):
        load_model(str(tmp_path / "model.pt"))
    assert load_model(str(tmp_path / "model.pt"), network).threshold == pytest.approx(0.8)


def test_weights_go_into_a_model_of_the_same_settings_alone(tmp_path, small_network):
    save_model(trained(ProbabilisticIterMask, small_network, **DEFAULT), str(tmp_path / "model.pt"))
    model = ProbabilisticIterMask(small_network, **DEFAULT)
    assert take_weights(model, str(tmp_path / "model.pt")).threshold == pytest.approx(0.8)
    with pytest.raises(ValueError, match="`image_size` is 32, but the model in .* was trained with 64"):
        take_weights(ProbabilisticIterMask(small_network, **{**DEFAULT, "image_size": 32}), str(tmp_path / "model.pt"))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (torch.zeros(DESCRIPTION_BYTES, dtype=torch.uint8), "damaged description"),
        (to_description({"format": 99, "method": "IterMask"}), "format 99, which this version does not know"),
        (to_description({"format": 1, "method": "os.system"}), "method 'os.system'"),
        (to_description({"format": 1, "method": "IterMask", "network": {"channels": 10**9}}), "impossible network"),
    ],
)
def test_damaged_or_foreign_description_is_refused(tmp_path, small_network, description, message):
    weights = trained(IterMask, small_network).state_dict()
    torch.save({**weights, "description": description}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "model.pt"))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run configs/train.json to make them, or set `model_file`"):
        load_model(tmp_path / "none.pt")


def test_text_is_no_model(tmp_path):
    (tmp_path / "model.pt").write_text("hello")
    with pytest.raises(ValueError, match="is not a file of network weights"):
        load_model(tmp_path / "model.pt")


def test_pickled_object_is_not_executed(tmp_path):
    torch.save({"threshold": os.system}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is not a file of network weights"):
        load_model(tmp_path / "model.pt")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(BasicUNet(spatial_dims=2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds the weights of another network"):
        load_model(tmp_path / "model.pt")


def test_model_without_threshold_can_be_loaded_for_calibration(model, tmp_path):
    model.threshold.fill_(float("nan"))
    save_model(model, tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="lacks a threshold"):
        load_model(tmp_path / "model.pt")
    load_model(tmp_path / "model.pt", calibrated=False)
