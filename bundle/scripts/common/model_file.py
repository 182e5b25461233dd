"""The model file: weights, thresholds and all that describes the model, as one state dict."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..method.default import ProbabilisticIterMask
from ..method.description import from_description, to_description
from ..method.networks import ReconstructionUNet
from ..method.published import IterMask
from ..method.refinement import FORMAT, SCALING, Refinement
from .outputs import read_tensors, save_tensors

METHODS: dict[str, Callable[..., Refinement]] = {"ProbabilisticIterMask": ProbabilisticIterMask, "IterMask": IterMask}
LARGEST_FIELD = 1000.0  # mm
LARGEST_SIZE = 4096  # of anything that describes a network
OTHER_NAMES = ("format", "method", "network")  # in a description, beside settings

# What models were before their files said so
FIRST_NETWORK = {"channels": 16, "channel_multipliers": [1, 2, 3, 4], "residual_blocks": 1, "attention_levels": []}
FIRST_NETWORK |= {"dropout": 0.0, "patch_size": 2}
FIRST_SETTINGS = {"modalities": ["flair"], "image_size": 128, **SCALING}
FIRST_OF_METHOD: dict[str, dict[str, Any]] = {
    "ProbabilisticIterMask": {"sigma": 2.0, "sign": "bright", "mirror_weight": 0.5, "last_weight": 0.5}
    | {"predict_variance": True, "robust_scaling": True},
    "IterMask": {"radius": 15.0, "sigma": 0.0, "first_fraction": 0.6, "lower_over_volume": True},
}

logger = logging.getLogger(__name__)


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
    if isinstance(weights, Mapping) and {"trainer", "best_weights"} <= weights.keys():
        raise ValueError(
            f"{path} is the checkpoint of a training and no model: set `model_file` to the file that this training "
            "wrote as its own `model_file`, such as model.pt."
        )
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(
            f"{path} is no file of network weights: set `model_file` to a model.pt that configs/train.json wrote."
        )
    return dict(weights)


def read_settings(weights: Mapping[str, Tensor], source: object) -> dict[str, Any]:
    """Read what a state dict says of its model; what older ones leave out is empty.

    Args:
        weights: The state dict.
        source: Where it comes from, for messages.

    Raises:
        ValueError: When its description is damaged, or of a newer program.
    """
    if "description" not in weights:
        return {}
    try:
        settings = from_description(weights["description"])
        known = settings["method"] in METHODS and int(settings["format"]) <= FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} holds a damaged description ({error}): train again, or set `model_file`.") from None
    if not known:
        raise ValueError(
            f"{source} holds a model of method {settings['method']!r} and format {settings['format']}, which this "
            "version does not know: install the version that made it."
        )
    return settings


def load_model(
    model_file: str,
    network: Callable[..., nn.Module] | None = None,
    calibrated: bool = True,
    **given: object,
) -> Refinement:
    """Make the model that a file holds, with its weights and thresholds, or say what is wrong with it.

    Args:
        model_file: A state dict as `save_model` writes it; loaded without unpickling objects.
        network: Makes the networks, where they are no `ReconstructionUNet`; default: as the file says.
        calibrated: Refuse a model that lacks a threshold.
        given: Settings that the caller expects, such as ``modalities`` or ``sign``; None: as the file says. Files of
            before they were noted take them from here.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no state dict, that of another network, or contradicts a setting.
        RuntimeError: When it lacks a threshold.
    """
    given = {name: value for name, value in given.items() if value is not None}
    weights, settings = _read(model_file, given)
    if network is None and settings["network"] is None:
        raise ValueError(
            f"{model_file} holds a network that is no ReconstructionUNet: give the overlay with its `network`."
        )
    with torch.device("meta"):  # no memory is taken for sizes that a damaged file may pretend to have
        model = build(settings, network)
    _put(model, {**weights, "description": to_description(settings)}, model_file)
    if calibrated:
        model.check_calibrated()
    return model


def with_lesions(model_file: str, **given: Any) -> ProbabilisticIterMask:
    """Load a model file of the default method with a network for whole volumes, untrained where it has none.

    Args:
        model_file: A calibrated model.
        given: As in `load_model`.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no model of the default method, or contradicts a setting.
        RuntimeError: When it lacks a threshold.
    """
    model = load_model(model_file, **given)
    settings = from_description(model.description)
    if not isinstance(model, ProbabilisticIterMask) or settings["network"] is None:
        raise ValueError(
            f"{model_file} holds a model of method {settings['method']}: expected the default method of "
            "configs/train.json, which alone takes a network for whole volumes; set `model_file`."
        )
    if settings.get("lesions"):
        return model
    larger = build({**settings, "lesions": True})
    assert isinstance(larger, ProbabilisticIterMask)
    larger.load_state_dict({**model.state_dict(), "description": larger.description}, strict=False)
    return larger.eval()


def keep_lesions(model: Refinement, model_file: str) -> Refinement:
    """Give a model that was trained on slices the network for whole volumes of the file that it is to replace.

    Args:
        model: Trained and calibrated.
        model_file: Where it goes; where there is none, or none with such a network for the same modalities and sizes
            (which is told), the model stays as it is.

    Returns:
        ``model``, or one like it with that network.
    """
    own = from_description(model.description)
    if not isinstance(model, ProbabilisticIterMask) or own.get("lesions") or not Path(model_file).is_file():
        return model
    weights = read_weights(model_file)
    settings = read_settings(weights, model_file)
    same = all(settings.get(name) == own[name] for name in ("method", "modalities", "network"))
    if not settings.get("lesions"):
        return model
    if not (same and own["network"] is not None):
        logger.warning(f"The network for whole volumes of {model_file} does not fit the new model and is left out.")
        return model
    larger = build({**own, "lesions": True}).to(model.threshold.device)
    lesions = {name: value for name, value in weights.items() if name.startswith("lesions.")}
    larger.load_state_dict({**model.state_dict(), **lesions, "description": larger.description})
    return larger.eval()


def take_weights(model: Refinement, model_file: str) -> Refinement:
    """Load a model file, calibrated or not, into a model that a config describes.

    Args:
        model: Its settings must be those of the file, which may hold a network for whole volumes besides.
        model_file: A state dict as `save_model` writes it.

    Returns:
        ``model``, or one like it with the network for whole volumes that the file holds; in evaluation mode.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it holds another model, naming what differs first.
    """
    expected = from_description(model.description)
    given = {name: value for name, value in expected.items() if name not in (*OTHER_NAMES, "lesions")}
    weights, settings = _read(model_file, given)
    if settings.get("lesions") and not expected.get("lesions"):
        return load_model(model_file, calibrated=False).to(model.threshold.device)
    return _put(model, {**weights, "description": model.description}, model_file)


def _read(model_file: str, given: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a file and its settings, which agree with what is given."""
    weights = read_weights(model_file)
    settings = read_settings(weights, model_file)
    if not settings:
        return describe_first(weights, given, model_file)
    check_given(settings, given, model_file)
    return weights, settings


def _put(model: Refinement, weights: Mapping[str, Tensor], source: object) -> Refinement:
    """Make a checked state dict that of a model."""
    try:
        model.load_state_dict(weights, assign=next(model.parameters()).is_meta)
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{source} holds the weights of another network ({detail[:200]}): give the overlay that it was trained "
            "with."
        ) from None
    check_numbers(model, weights, source)
    return model.eval()


def build(settings: Mapping[str, Any], network: Callable[..., nn.Module] | None = None) -> Refinement:
    """Make an untrained model from the settings of a description.

    Raises:
        ValueError: When a setting has no meaning for the method.
    """
    size = settings["network"] or {}
    numbers = [number for value in size.values() for number in (value if isinstance(value, list) else [value])]
    if not all(isinstance(number, (int, float)) and 0 <= number <= LARGEST_SIZE for number in numbers):
        raise ValueError(f"The description of the model holds an impossible network {size}: train again.")
    make = network if network is not None else partial(ReconstructionUNet, **size)
    options = {name: value for name, value in settings.items() if name not in (*OTHER_NAMES, *SCALING)}
    try:
        scaling = {name: settings[name] for name in SCALING}
        return METHODS[settings["method"]](network=make, scaling=scaling, **options)
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


def describe_first(
    weights: dict[str, Tensor], given: Mapping[str, object], source: object
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Bring the state dict of a version without descriptions to today's form, and say what is assumed of it."""
    method = "IterMask" if any(name.startswith("first_iteration.") for name in weights) else "ProbabilisticIterMask"
    settings = {**FIRST_SETTINGS, **FIRST_OF_METHOD[method], **given}
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    again = ""
    if "deviations" in weights:
        weights = {**weights, "deviation": weights["deviations"][0]}
        del weights["deviations"]
        again = " Its thresholds were measured for another score: run `calibrate`."
    logger.warning(f"{source} does not say how it was made; assumed: {method}, {shown}.{again}")
    return weights, {"format": FORMAT, "method": method, "network": FIRST_NETWORK, **settings}


def check_numbers(model: Refinement, weights: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights that are no finite numbers, and what is kept beside them where nothing measured is like it.

    Raises:
        ValueError: Naming the first one.
    """
    own = model.state_dict()
    wrong = [
        name
        for name, value in weights.items()
        if name.split(".")[0] in model.networks
        and (value.is_floating_point() != own[name].is_floating_point() or not value.isfinite().all())
    ]
    size = model.field_of_view
    wrong += ["field_of_view"] * (not (size.isfinite() & (size >= 0) & (size <= LARGEST_FIELD)).all())
    wrong += ["planes"] * bool(model.planes.isnan().any())
    if "deviation" in own:
        wrong += ["deviation"] * (not 0 < float(own["deviation"]) < math.inf)
    measured = [math.isfinite(value) for value in model.threshold_values()]
    wrong += ["thresholds"] * (any(measured) and not all(measured))
    if wrong:
        raise ValueError(
            f"{source} holds numbers that no training leaves ({wrong[0]}): train again, or set `model_file`."
        )


def save_model(
    model: Refinement,
    model_file: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    replaces: str | None = None,
) -> None:
    """Write the networks, the thresholds and the description as one state dict; see `outputs.atomic`."""
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    save_tensors(model_file, weights, folder, replaces)
