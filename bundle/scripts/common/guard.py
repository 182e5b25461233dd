"""What a model file says of the config, written into the running config; on its way out."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping

from monai.bundle import ConfigItem, ReferenceResolver

from ..method.networks import ReconstructionUNet
from ..method.refinement import SCALING
from .checks import _options_and_words
from .model_file import METHODS, OTHER_NAMES, check_given, read_settings, read_weights


def running_config() -> tuple[ReferenceResolver | None, str]:
    """The config that a component is being made of, and the id that was asked for; None: it is made by hand.

    MONAI gives a component only its own arguments, so the callers of this function are searched.
    """
    resolver, run_id = None, ""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is ReferenceResolver._resolve_one_item.__code__:
            resolver = resolver or frame.f_locals["self"]
            run_id = frame.f_locals["id"].partition(ReferenceResolver.sep)[0]
        frame = frame.f_back
    return resolver, run_id


def asked_for() -> str:
    """The id that is run; empty when all of the config is asked for."""
    return running_config()[1]


def trained_model_file(output_dir: str, bundle_root: str) -> str:
    """Where training writes its model, unless told: beside its checkpoint, and never over the weights of the bundle.

    MONAI Label, which writes a list of scans into the running config, trains the weights that its server reads.

    Args:
        output_dir: The folder of the training.
        bundle_root: The folder of the bundle.
    """
    resolver, _ = running_config()
    data = resolver.items.get(resolver.normalize_id("train#dataset#data")) if resolver else None
    from_label = data is not None and isinstance(data.get_config(), list)
    return os.path.join(bundle_root, "models", "model.pt") if from_label else os.path.join(output_dir, "model.pt")


def take_model_settings(model_file: str) -> None:
    """Let what describes a model in the running config be as its file says, whatever the config files say.

    Args:
        model_file: As `save_model` writes it; one of before files said what they are leaves the config as it is.

    Raises:
        ValueError: When the command line contradicts the file, or the config is that of another method.
    """
    resolver, _ = running_config()
    settings = read_settings(read_weights(model_file), model_file)
    if resolver is None or not settings:
        return
    model = resolver.items["network_def"]
    method = model.get_config()["_target_"].rpartition(".")[2]
    if method not in METHODS:  # volumes.json loads the file
        return
    if settings["method"] != method:
        other = "add configs/paper.json to" if settings["method"] == "IterMask" else "leave configs/paper.json out of"
        raise ValueError(
            f"{model_file} holds a model of the method {settings['method']}, but the config is that of {method}: "
            f"{other} --config_file, or set another `model_file`."
        )
    sizes, options = settings["network"], {name: settings[name] for name in settings.keys() - {*OTHER_NAMES, "lesions"}}
    _check_command_line(resolver, options, sizes or {}, model_file)
    for name in options.keys() & resolver.items.keys():
        resolver.items[name] = ConfigItem(config=options[name], id=name)
        resolver.resolved_content[name] = options[name]
    own = {name: value for name, value in options.items() if name not in SCALING}
    model.update_config({**model.get_config(), **own})
    if sizes is not None:
        target = f"{ReconstructionUNet.__module__}.{ReconstructionUNet.__name__}"
        resolver.items["backbone"].update_config({"_target_": target, "_mode_": "callable", **sizes})


def _check_command_line(
    resolver: ReferenceResolver, options: Mapping[str, object], sizes: Mapping[str, object], model_file: str
) -> None:
    """Refuse what the command line says of a model and its networks where its file says something else."""
    described = {**options, **{f"network_def#{name}": value for name, value in options.items()}}
    described |= {f"backbone#{name}": value for name, value in sizes.items()}
    said = {name: resolver.normalize_id(name) for name in _options_and_words(sys.argv[1:])[0] if name in described}
    given = {name: resolver.get_resolved_content(key) for name, key in said.items()}
    check_given(described, {name: value for name, value in given.items() if value is not None}, model_file)
