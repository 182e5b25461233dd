"""The model file remembers what it is: it needs no settings beside it, and refuses those that contradict it."""

import os
from functools import partial

import pytest
import torch
from monai.networks.nets import BasicUNet
from scripts.common.model_file import load_model, save_model, with_weights
from scripts.method.description import DESCRIPTION_BYTES, from_description, to_description
from scripts.method.itermask import IterMask
from scripts.method.lesion_network import LesionNetwork

SCALING = {"upper_fraction": 0.98, "lower_fraction": 0.01, "lower_over_volume": True}
SETTINGS = {
    IterMask: {"modalities": ["t2"], "image_size": 32, "radius": 4.0, "initial_fraction": 0.4, "scaling": SCALING},
    LesionNetwork: {"modalities": ["t1", "flair"], "polarity": "both", "mirror_weight": 0.1},
}


def trained(method, network, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = method(network, **settings).eval()
    for threshold in model.threshold_values():
        threshold.fill_(0.8)
    return model


@pytest.mark.parametrize("method", SETTINGS, ids=lambda method: method.__name__)
def test_loaded_model_is_the_saved_one_without_any_setting(tmp_path, small_network, method):
    model = trained(method, small_network, **SETTINGS[method])
    save_model(model, str(tmp_path / "model.pt"))
    loaded = load_model(str(tmp_path / "model.pt"), modalities=SETTINGS[method]["modalities"])
    assert type(loaded) is method and not loaded.training
    assert from_description(loaded.description) == from_description(model.description)
    assert loaded.modality_names == SETTINGS[method]["modalities"]
    assert loaded.scaling == (SCALING if method is IterMask else None)
    image = torch.randn(1, model.modalities + 1, 32, 32, generator=torch.Generator().manual_seed(1))
    image[:, -1] = 1
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_training_begins_with_the_networks_of_a_file_and_keeps_all_else(tmp_path, small_network):
    path, settings = str(tmp_path / "model.pt"), SETTINGS[LesionNetwork]
    before = trained(LesionNetwork, small_network, **settings)
    save_model(before, path)
    model = with_weights(LesionNetwork(small_network, **settings | {"polarity": "hyperintense"}), path)
    assert model.low_threshold.isnan() and from_description(model.description)["polarity"] == "hyperintense"
    assert all(
        torch.equal(value, before.network.state_dict()[name]) for name, value in model.network.state_dict().items()
    )
    assert with_weights(model, None) is model
    for other in (LesionNetwork(small_network), IterMask(small_network)):
        with pytest.raises(ValueError, match="holds other networks than this training: set `pretrained_file`"):
            with_weights(other, path)
    with pytest.raises(FileNotFoundError, match="set `pretrained_file`"):
        with_weights(model, str(tmp_path / "none.pt"))
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="set `pretrained_file`"):
        with_weights(model, path)


def test_modalities_that_contradict_the_file_are_named(tmp_path, small_network):
    save_model(trained(LesionNetwork, small_network, **SETTINGS[LesionNetwork]), str(tmp_path / "model.pt"))
    message = r"`modalities` is \['flair', 't1'\], but the model in .* was trained with \['t1', 'flair'\]"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "model.pt"), modalities=["flair", "t1"])


@pytest.mark.parametrize("method", SETTINGS, ids=lambda method: method.__name__)
def test_model_that_lacks_any_threshold_is_refused_except_for_calibration(tmp_path, small_network, method):
    model, path = trained(method, small_network), str(tmp_path / "model.pt")
    for name in model.thresholds:
        before = float(getattr(model, name))
        getattr(model, name).fill_(float("nan"))
        save_model(model, path)
        with pytest.raises(RuntimeError, match="lacks a threshold"):
            load_model(path)
        with pytest.raises(RuntimeError, match="lacks a threshold"):
            load_model(path, calibrated=False)(torch.ones(1, 2, 16, 16))
        getattr(model, name).fill_(before)


def test_network_of_another_kind_needs_its_override_config(tmp_path):
    network = partial(BasicUNet, spatial_dims=2, features=(4, 4, 4, 4, 4, 4))
    save_model(trained(IterMask, network), str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="no ReconstructionUNet"):
        load_model(str(tmp_path / "model.pt"))
    assert load_model(str(tmp_path / "model.pt"), network).threshold == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (torch.zeros(DESCRIPTION_BYTES, dtype=torch.uint8), "does not say how it was made"),
        (to_description({"format": 99, "method": "IterMask"}), "format 99, which this version does not know"),
        (to_description({"format": 1, "method": "os.system"}), "method 'os.system'"),
        (to_description({"format": 1, "method": "IterMask", "network": {"channels": 10**9}}), "cannot be used"),
        (to_description({"format": 1, "method": "IterMask", "network": {}, "passes": 3}), "cannot be used"),
    ],
)
def test_damaged_or_foreign_description_is_refused(tmp_path, small_network, description, message):
    weights = trained(IterMask, small_network).state_dict()
    torch.save({**weights, "description": description}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "model.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run configs/train.json to make them, or set `model_file`"),
        ("hello", "is not a file of network weights"),
        ({"threshold": os.system}, "is not a file of network weights"),
        ({"trainer": {}, "network": {}}, "is no model"),
        (BasicUNet(spatial_dims=2).state_dict(), "does not say how it was made"),
    ],
    ids=["missing", "text", "pickle", "checkpoint", "weights"],
)
def test_what_is_no_model_is_refused(tmp_path, content, message):
    path = tmp_path / "model.pt"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(str(path))


def test_weights_that_are_no_numbers_or_another_network_s_are_refused(tmp_path, small_network):
    model, path = trained(IterMask, small_network), tmp_path / "model.pt"
    weights = model.state_dict()
    name = next(name for name in weights if name.startswith("masked."))
    torch.save({**weights, name: torch.full_like(weights[name], float("nan"))}, path)
    with pytest.raises(ValueError, match="numbers that no training leaves"):
        load_model(str(path))
    torch.save({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        load_model(str(path))
