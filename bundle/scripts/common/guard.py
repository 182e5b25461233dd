"""What is wrong with a command line or a config, told before any work; and what a model file says of the config."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import re
import sys
from collections.abc import Mapping

from monai.bundle import ConfigItem, ConfigParser, ReferenceResolver
from monai.bundle.scripts import run as bundle_run

from ..method.networks import ReconstructionUNet
from ..method.refinement import SCALING
from .errors import report_errors
from .model_file import METHODS, OTHER_NAMES, check_given, read_settings, read_weights
from .settings import check_config
from .threads import watch_cores

EXPORTS = {"ckpt_export": "model.ts", "trt_export": "model_trt.ts", "onnx_export": "model.onnx"}  # and where they go


def _overrides(arguments: list[str]) -> dict[str, str]:
    """The ``--id value`` and ``--id=value`` pairs of a command line."""
    pairs: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if re.match(r"--?[A-Za-z_]", argument):
            name, equals, value = argument.lstrip("-").partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            pairs[name.replace("-", "_").replace("::", "#")] = value if equals else following
    return pairs


def _lone_words(arguments: list[str]) -> list[str]:
    """The words of a command line that are neither an id nor its value."""
    words, is_value = [], False
    for argument in arguments:
        if re.match(r"--?[A-Za-z_]", argument):
            is_value = "=" not in argument
        elif is_value:
            is_value = False
        else:
            words.append(argument)
    return words


def _arguments() -> list[str]:
    """The command line of this process, when it is ``monai.bundle run``."""
    return sys.argv[1:] if _is_bundle_command() else []


def _is_bundle_command() -> bool:
    return sys.argv[0].endswith(os.path.join("monai", "bundle", "__main__.py"))


def _config_files(value: str) -> list[str]:
    return list(ast.literal_eval(value)) if value.startswith(("[", "(")) else value.split(",")


def check_overrides(arguments: list[str] | None = None) -> None:
    """Refuse an override that no config file knows, which MONAI would silently ignore.

    New arguments of a component (``--network_def#dropout 0.2``) are left to the component.

    Args:
        arguments: The command line; default: this process's, when it is ``monai.bundle run``.

    Raises:
        ValueError: When an override names an id that does not exist (the closest one is suggested), or is the text
            ``true`` or ``false``, which MONAI would take as a text and not as a truth value.
    """
    arguments = _arguments() if arguments is None else arguments
    words = _lone_words(arguments)
    if len(words) > 2:  # run, and what to run
        raise ValueError(f"{words[2]!r} belongs to no id: write --ID VALUE for each id that is set.")
    pairs = _overrides(arguments)
    if "config_file" not in pairs:
        return
    parser = ConfigParser(ConfigParser.load_config_files(_config_files(pairs["config_file"])))
    known = set(inspect.signature(bundle_run).parameters) - {"override"}
    for name, value in pairs.items():
        if value in ("true", "false"):
            raise ValueError(f"--{name} {value} would be read as a text: write --{name} {value.capitalize()}.")
    for name in pairs.keys() & {*parser.get("_unused_", "").split(", ")}:
        raise ValueError(f"--{name} changes nothing in {pairs['config_file']}: leave it out.")
    for name in pairs.keys() - known:
        parent = name.rpartition("#")[0]
        if name in parser:
            continue
        if parent and parent in parser and isinstance(parser[parent], dict) and "_target_" in parser[parent]:
            continue
        close = difflib.get_close_matches(name, [key for key in parser.get() if not key.startswith("_")], n=1)
        hint = f"did you mean --{close[0]}?" if close else "see the ids at the top of the config file."
        raise ValueError(f"The override --{name} names no id of {pairs['config_file']}: {hint}")


def check_export() -> None:
    """Refuse an export by a command of MONAI's own over a file that is there: it would write over whatever it is.

    Raises:
        ValueError: When the file is there.
    """
    command, *arguments = sys.argv[1:] if _is_bundle_command() and sys.argv[1:] else [""]
    if command not in EXPORTS:
        return
    path = _overrides(arguments).get("filepath", os.path.join("models", EXPORTS[command]))
    path = path if os.path.splitext(path)[1] else f"{path}{os.path.splitext(EXPORTS[command])[1]}"
    if os.path.lexists(path):
        report_errors()
        raise ValueError(f"{path} is there already: move it, or name a new file with --filepath.")


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


def says_null(value: object) -> bool:
    """Whether a value is the word null, which a command line cannot tell from a name."""
    return isinstance(value, str) and value.strip().lower() in ("null", "none")


def take_null_as_null(resolver: ReferenceResolver) -> None:
    """Let the word null, or none, of any id at the top of the running config be null.

    A command line gives the text "null", and MONAI drops an id that is given as None.
    """
    top = {name for name in resolver.items if resolver.sep not in name}
    words = {name for name in top if says_null(resolver.items[name].get_config())}
    given = {name for name, value in _overrides(_arguments()).items() if says_null(value)}
    for name in words | (given & top):
        resolver.items[name] = ConfigItem(config=None, id=name)
        resolver.resolved_content[name] = None  # noted, or MONAI would read the config anew


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
    said = {name: resolver.normalize_id(name) for name in _overrides(_arguments()) if name in described}
    given = {name: resolver.get_resolved_content(key) for name, key in said.items()}
    check_given(described, {name: value for name, value in given.items() if value is not None}, model_file)


def guard() -> str:
    """First item of every run: errors become one line, and what is wrong with the config an error before any work.

    Returns:
        The id that is run; empty when all of the config is asked for.
    """
    report_errors()
    check_overrides()
    if _arguments():
        watch_cores()
    resolver, run_id = running_config()
    if resolver is not None:
        take_null_as_null(resolver)
        check_config(resolver, run_id)
    return run_id
