"""The model file: weights, thresholds and all that describes the model, as one state dict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..method.description import from_description
from ..method.itermask import IterMask
from ..method.lesion_network import LesionNetwork
from ..method.model import FORMAT, Model
from ..method.networks import ReconstructionUNet
from .outputs import read_tensors, save_tensors

METHODS: dict[str, Callable[..., Model]] = {"IterMask": IterMask, "LesionNetwork": LesionNetwork}


def load_model(
    model_file: str,
    network: Callable[..., nn.Module] | None = None,
    calibrated: bool = True,
    modalities: Sequence[str] | None = None,
) -> Model:
    """Make the model that a file holds, with its weights and thresholds, or say what is wrong with it.

    Args:
        model_file: A state dict as `save_model` writes it; loaded without unpickling objects.
        network: Makes the networks, where they are no `ReconstructionUNet`; default: as the file says.
        calibrated: Refuse a model that lacks a threshold.
        modalities: What the caller expects; default: as the file says.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no state dict, that of another network, or has other modalities.
        RuntimeError: When it lacks a threshold.
    """
    weights = _read_weights(model_file)
    settings = _settings_of(weights, model_file)
    if modalities is not None and list(modalities) != settings["modalities"]:
        raise ValueError(
            f"`modalities` is {list(modalities)}, but the model in {model_file} was trained with "
            f"{settings['modalities']}: leave it out, or set `model_file` to another model."
        )
    if network is None and settings["network"] is None:
        raise ValueError(
            f"{model_file} holds a network that is no ReconstructionUNet: add the override config with its `backbone`."
        )
    with torch.device("meta"):  # no memory is taken for sizes that a damaged file may pretend to have
        model = _build(settings, network)
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{model_file} holds the weights of another network ({detail[:200]}): add the override config that it was "
            "trained with."
        ) from None
    for name, value in weights.items():
        if name.split(".")[0] in model.networks and not value.isfinite().all():
            raise ValueError(f"{model_file} holds numbers that no training leaves ({name}): train again.")
    if calibrated:
        model.check_calibrated()
    return model.eval()


def _read_weights(model_file: str, option: str = "model_file") -> dict[str, Tensor]:
    """Read a state dict; `option` is the name of the option that gave the file, for messages."""
    if not os.path.isfile(model_file):
        raise FileNotFoundError(f"No weights at {model_file}: run configs/train.json to make them, or set `{option}`.")
    try:
        weights = read_tensors(model_file)
    except ValueError as error:
        raise ValueError(f"{error}: set `{option}` to a model.pt that configs/train.json wrote.") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{model_file} is no model (a training's checkpoint is none either): set `{option}` to a model.pt that "
            "configs/train.json wrote."
        )
    return weights


def _settings_of(weights: Mapping[str, Tensor], model_file: str) -> dict[str, Any]:
    """Read what a state dict says of its model."""
    try:
        settings = from_description(weights["description"])
        known = settings["method"] in METHODS and settings["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{model_file} does not say how it was made ({error}): set `model_file` to a model.pt that "
            "configs/train.json wrote."
        ) from None
    if not known:
        raise ValueError(
            f"{model_file} holds a model of method {settings['method']!r} and format {settings['format']}, which this "
            "version does not know: install the version that made it."
        )
    return settings


def _build(settings: Mapping[str, Any], network: Callable[..., nn.Module] | None) -> Model:
    """Make an untrained model from the settings of a description, which a damaged file may have changed."""
    options = dict(settings)
    method, size = METHODS[options.pop("method")], options.pop("network") or {}
    del options["format"]
    try:
        return method(network=network or partial(ReconstructionUNet, **size), **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"The description of the model cannot be used ({error}): train again.") from None


def with_weights(model: Model, model_file: str | None) -> Model:
    """Give a model the networks of a file, for a training that begins with them; None leaves it as it is.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When its networks are others.
    """
    if model_file is None:
        return model
    weights, own = _read_weights(model_file, "pretrained_file"), model.state_dict()
    names = [name for name in own if name.split(".")[0] in model.networks]
    if any(name not in weights or weights[name].shape != own[name].shape for name in names):
        raise ValueError(
            f"{model_file} holds other networks than this training: set `pretrained_file` to a model of the same "
            "method, sizes and modalities."
        )
    model.load_state_dict({**own, **{name: weights[name] for name in names}})
    return model


def save_model(
    model: Model,
    model_file: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    replaces: str | None = None,
) -> None:
    """Write the networks, the thresholds and the description as one state dict; see `outputs.atomic`."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors(model_file, weights, folder, replaces)
