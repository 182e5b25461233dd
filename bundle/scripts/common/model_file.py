"""The model file: weights, thresholds and all that describes the model, as one state dict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
LARGEST_SIZE = 4096  # of anything that describes a network
OTHER_NAMES = ("format", "method", "network")  # in a description, beside settings


def read_weights(model_file: str) -> dict[str, Tensor]:
    """Read the state dict of a model file, without unpickling objects.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no state dict.
    """
    path = Path(model_file)
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}: run configs/train.json to make them, or set `model_file`.")
    try:
        weights = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}: set `model_file` to a model.pt that configs/train.json wrote.") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} is no model (a training's checkpoint is none either): set `model_file` to a model.pt that "
            "configs/train.json wrote."
        )
    return dict(weights)


def read_settings(weights: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """Read what a state dict says of its model.

    Args:
        weights: The state dict.
        source: Where it comes from, for messages.

    Raises:
        ValueError: When it has no description, or one that is damaged or of another version.
    """
    try:
        settings = from_description(weights["description"])
        known = settings["method"] in METHODS and settings["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source} does not say how it was made ({error}): set `model_file` to a model.pt that configs/train.json "
            "wrote."
        ) from None
    if not known:
        raise ValueError(
            f"{source} holds a model of method {settings['method']!r} and format {settings['format']}, which this "
            "version does not know: install the version that made it."
        )
    return settings


def load_model(
    model_file: str, network: Callable[..., nn.Module] | None = None, calibrated: bool = True, **given: object
) -> Model:
    """Make the model that a file holds, with its weights and thresholds, or say what is wrong with it.

    Args:
        model_file: A state dict as `save_model` writes it; loaded without unpickling objects.
        network: Makes the networks, where they are no `ReconstructionUNet`; default: as the file says.
        calibrated: Refuse a model that lacks a threshold.
        given: Settings that the caller expects, such as ``modalities``; None: as the file says.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no state dict, that of another network, or contradicts a setting.
        RuntimeError: When it lacks a threshold.
    """
    weights = read_weights(model_file)
    settings = read_settings(weights, model_file)
    check_given(settings, {name: value for name, value in given.items() if value is not None}, model_file)
    if network is None and settings["network"] is None:
        raise ValueError(
            f"{model_file} holds a network that is no ReconstructionUNet: add the override config with its `backbone`."
        )
    with torch.device("meta"):  # no memory is taken for sizes that a damaged file may pretend to have
        model = build(settings, network)
    try:
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{model_file} holds the weights of another network ({detail[:200]}): add the override config that it was "
            "trained with."
        ) from None
    check_numbers(model, weights, model_file)
    if calibrated:
        model.check_calibrated()
    return model.eval()


def build(settings: Mapping[str, Any], network: Callable[..., nn.Module] | None = None) -> Model:
    """Make an untrained model from the settings of a description.

    Raises:
        ValueError: When a setting has no meaning for the method.
    """
    size = settings["network"] or {}
    numbers = [number for value in size.values() for number in (value if isinstance(value, list) else [value])]
    if not all(isinstance(number, (int, float)) and 0 <= number <= LARGEST_SIZE for number in numbers):
        raise ValueError(f"The description of the model holds an impossible network {size}: train again.")
    make = network if network is not None else partial(ReconstructionUNet, **size)
    options = {name: value for name, value in settings.items() if name not in OTHER_NAMES}
    try:
        return METHODS[settings["method"]](network=make, **options)
    except (TypeError, KeyError) as error:
        raise ValueError(f"The description of the model cannot be used ({error}): train again.") from None


def check_given(settings: Mapping[str, object], given: Mapping[str, object], source: object) -> None:
    """Refuse settings that contradict those of a model.

    Raises:
        ValueError: Naming the first one.
    """
    for name, value in given.items():
        said = settings.get(name)
        value = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        if value != said:
            raise ValueError(
                f"`{name}` is {value!r}, but the model in {source} was trained with {said!r}: leave it out, or set "
                "`model_file` to another model."
            )


def check_numbers(model: Model, weights: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights that are no finite numbers of the kind that the model has.

    Raises:
        ValueError: Naming the first one.
    """
    own = model.state_dict()
    for name, value in weights.items():
        network = name.split(".")[0] in model.networks
        if value.is_floating_point() != own[name].is_floating_point() or (network and not value.isfinite().all()):
            raise ValueError(f"{source} holds numbers that no training leaves ({name}): train again.")


def save_model(
    model: Model,
    model_file: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    replaces: str | None = None,
) -> None:
    """Write the networks, the thresholds and the description as one state dict; see `outputs.atomic`."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors(model_file, weights, folder, replaces)
