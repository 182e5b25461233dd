"""The model file: weights, thresholds and what describes them, as one state dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..method.published import IterMask, networks_of
from .files import read_tensors, save_tensors

LARGEST_FIELD = 1000.0  # mm


def load_model(model: IterMask, model_file: str, calibrated: bool = True) -> IterMask:
    """Load the weights and the threshold of a model file, or say what is wrong with it.

    Args:
        model: A module of the architecture that the file was made with.
        model_file: A state dict as `save_model` writes it; loaded without unpickling objects.
        calibrated: Refuse a model that has no threshold.

    Returns:
        ``model``, in evaluation mode.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no state dict, or that of another network.
        RuntimeError: When it has no threshold.
    """
    path = Path(model_file)
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}: run configs/train.json to make them, or set `model_file`.")
    try:
        weights = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}: set `model_file` to a model.pt that configs/train.json wrote.") from None
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{path} holds the weights of another network ({detail[:200]}): set `network_def` and `modalities` to "
            "what it was trained with."
        ) from None
    _check_numbers(model, weights, path)
    if calibrated and not torch.isfinite(model.threshold):
        raise RuntimeError(
            f"{path} has no threshold: run configs/train.json to the end, or `run calibrate`, or set "
            "network_def#threshold."
        )
    return model.eval()


def _check_numbers(model: IterMask, weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are no finite numbers, and what is kept beside them where nothing measured is like it."""
    own = model.state_dict()
    values = {name: value for name, value in weights.items() if name.split(".")[0] in networks_of(model)}
    size, planes = model.field_of_view, model.planes
    deviations = getattr(model, "deviations", torch.ones(2))
    thresholds = [getattr(model, name, model.threshold) for name in ("certain_threshold", "first_threshold")]
    wrong = [
        name
        for name, value in values.items()
        if value.is_floating_point() != own[name].is_floating_point() or not value.isfinite().all()
    ]
    wrong += ["field_of_view"] * (not (size.isfinite() & (size >= 0) & (size <= LARGEST_FIELD)).all())
    wrong += ["planes"] * bool(planes.isnan().any())
    wrong += ["deviations"] * (not (deviations.isfinite() & (deviations > 0)).all())
    wrong += ["thresholds"] * (bool(model.threshold.isfinite()) and not all(map(torch.isfinite, thresholds)))
    if wrong:
        raise ValueError(
            f"{path} holds numbers that no training leaves ({wrong[0]}): train again, or set `model_file`."
        )


def save_model(model: IterMask, model_file: str) -> None:
    """Write both networks and the threshold as one state dict, atomically."""
    save_tensors(model_file, {name: value.detach().cpu() for name, value in model.state_dict().items()})
