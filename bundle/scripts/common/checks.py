"""What is wrong with a command line or with a setting, told in one sentence before any work."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run as bundle_run

from ..method.precision import PRECISIONS
from .errors import report_errors

LONGEST_NAME = 200  # bytes of a case's name: endings of files come on top, and file systems take 255
LONGEST_PATH = 3000  # bytes
OPTIONS_OF_MONAI = {*inspect.signature(bundle_run).parameters, *inspect.signature(ConfigWorkflow).parameters}
OPTIONS_OF_MONAI -= {"override"}  # that of all others
RENAMED = {
    "max_passes": "max_iterations",
    "stop_shrink": "tolerance",
    "sign": "polarity",
    "first_fraction": "initial_fraction",
    "exceed_fraction": "false_positive_rate",
    "crop_size": "canvas_size",
}


def _options_and_words(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of a command line with their values (``--a 1``, ``--a=1``), and the words that belong to none."""
    options, words, waiting = {}, [], ""
    for argument in arguments:
        if re.match(r"--?[A-Za-z_]", argument):
            name, equals, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_").replace("::", "#")
            options[name], waiting = value, "" if equals else name
        elif waiting:
            options[waiting], waiting = argument, ""
        else:
            words.append(argument)
    return options, words


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Let errors be one line from now on, and refuse what MONAI would silently ignore or take for something else.

    New arguments of a component (``--network_def#dropout 0.2``) are left to the component.

    Args:
        arguments: The command line; default: this process's, when it is ``monai.bundle``.

    Raises:
        ValueError: When an option, of the command line or of its ``--args_file``, is none of the config (the closest
            one is suggested) or has a value that MONAI reads as text, or when a word belongs to no option.
    """
    report_errors()
    if arguments is None:
        arguments = sys.argv[1:] if sys.argv[0].endswith(os.path.join("monai", "bundle", "__main__.py")) else []
    options, words = _options_and_words(arguments)
    if len(words) > 2:  # run, and what to run
        raise ValueError(f"{words[2]!r} belongs to no option: write --OPTION VALUE for each option that is set.")
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    if "config_file" in options:
        files = options["config_file"]
        if isinstance(files, str) and files.startswith(("[", "(")):
            files = ast.literal_eval(files)
        config = ConfigParser(ConfigParser.load_config_files(files))
        for name in options.keys() - OPTIONS_OF_MONAI:
            _check_option(name, options[name], config)


def _check_option(name: str, value: object, config: ConfigParser) -> None:
    """Refuse an option that a config does not have or does not use, and a word that MONAI takes for a text."""
    parent = name.rpartition("#")[0]
    component = config[parent] if parent and parent in config else None
    if name not in config and not (isinstance(component, dict) and "_target_" in component):
        known = [key for key in config.get() if not key.startswith("_")]
        close = difflib.get_close_matches(RENAMED.get(name, name), known, n=1)
        hint = f"did you mean --{close[0]}?" if close else "see the options at the top of the config file."
        raise ValueError(f"The config has no option --{name}: {hint}")
    if name in config.get("_unused_", "").split(", "):
        raise ValueError(f"--{name} changes nothing with this config: leave it out.")
    if value in ("true", "false"):
        raise ValueError(f"--{name} {value} would be read as a text: write --{name} {str(value).capitalize()}.")
    if isinstance(value, str) and value.lower() in ("null", "none"):
        raise ValueError(f"--{name} {value} would be read as a text, or not at all: write --{name} '$None'.")


class Rule(NamedTuple):
    """What a value must be, in words, and whether one is."""

    words: str
    fits: Callable[[Any], bool]


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is text of one line without control characters, which file names and messages can hold."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value)


def is_name(value: object) -> TypeGuard[str]:
    """Whether a text may become part of a file's name: of one line, not too long, no slash, no leading dot."""
    if not is_text(value):
        return False
    plain = os.path.basename(value) == value and "\\" not in value and not value.startswith(".")
    return plain and len(value.encode()) <= LONGEST_NAME


def is_path(value: object) -> TypeGuard[str]:
    """Whether a text may be the path of a file: of one line, not longer than file systems take.

    One that begins with ~ is not: some libraries replace it and others do not, so that one path would be two places.
    """
    if not is_text(value) or value.startswith("~"):
        return False
    return len(value.encode()) <= LONGEST_PATH and max(len(part.encode()) for part in value.split(os.sep)) <= 255


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_device(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, int) and torch.ones(1, device=value).item() == 1
    except Exception:  # backends that are not there raise what they like
        return False


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _number(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def _positive(high: float = math.inf) -> Rule:
    words = "a number above 0" + ("" if math.isinf(high) else f", at most {high:g}")
    return Rule(words, lambda value: _is_number(value) and 0 < value <= high)


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _list_of(words: str, rule: Rule, length: int | None = None) -> Rule:
    def fits(value: Any) -> bool:
        right = isinstance(value, (list, tuple)) and len(value) > 0 and length in (None, len(value))
        return right and all(map(rule.fits, value))

    return Rule(words, fits)


def _dict_of(words: str, fits: Callable[[Any], bool]) -> Rule:
    return Rule(
        f"{{name: {words}}}",
        lambda value: isinstance(value, Mapping) and all(map(is_name, value)) and all(map(fits, value.values())),
    )


def _either(*rules: Rule) -> Rule:
    return Rule(", or ".join(rule.words for rule in rules), lambda value: any(rule.fits(value) for rule in rules))


NULL = Rule("null", lambda value: value is None)
PART = Rule("in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
OPEN_PART = Rule("in (0, 1)", lambda value: _is_number(value) and 0 < value < 1)
SWITCH = Rule("True or False", lambda value: isinstance(value, bool))
SIZE, COUNT = _whole(1, 4096), _whole(0, 2**32 - 1)
NAME = Rule("a name without slashes", is_name)
PATH = Rule("the path of a file or folder, as text", is_path)
PATHS = _either(PATH, _list_of("a list of them", PATH))
CASE = Rule("a case name", lambda value: type(value) is int or is_path(value))
CASES = _either(PATH, _list_of("a list of case names", CASE))
PAIR = _list_of("two whole numbers", COUNT, length=2)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("output_dir", "model_file", "results_dir"), PATH),
    **dict.fromkeys(("image", "dataset_dir", "label_maps_dir"), _either(PATHS, NULL)),
    **dict.fromkeys(("split", "split_training", "split_validation", "split_testing", "exclude"), _either(CASES, NULL)),
    **dict.fromkeys(("allow_outside", "compile", "resume", "save_brain_mask", "pictures"), SWITCH),
    **dict.fromkeys(("unlabeled_are_healthy", "lower_over_volume"), SWITCH),
    **dict.fromkeys(("tolerance", "lesion_fraction", "upper_fraction", "lower_fraction"), PART),
    **dict.fromkeys(("initial_fraction", "false_positive_rate"), OPEN_PART),
    **dict.fromkeys(("iterations", "validation_interval", "max_iterations"), _whole(1, 10**9)),
    **dict.fromkeys(("warmup_iterations", "least_pixels", "rank", "seed"), COUNT),
    **dict.fromkeys(("volumes_per_head", "validation_heads", "testing_heads"), _whole(0, 1000)),
    **dict.fromkeys(("batch_size", "image_size"), SIZE),
    **dict.fromkeys(("learning_rate", "largest_gradient_norm", "doubt", "ssim_data_range"), _positive()),
    **dict.fromkeys(("threshold_scale", "largest_ml"), _positive(1000)),
    **dict.fromkeys(("sigma", "radius", "slice_distance", "weight_decay"), _number(0, 10_000)),
    "ema_momentum": _positive(1),
    **dict.fromkeys(("brain_mask", "pretrained_file"), _either(PATH, NULL)),
    "case": _either(NAME, NULL),
    "label": Rule(
        "a name such as seg, or PIPELINE/NAME",
        lambda value: isinstance(value, str) and value.count("/") < 2 and all(map(is_name, value.split("/"))),
    ),
    "modalities": _either(_list_of("a list of names such as ['flair']", NAME), NULL),
    "slice_range": Rule(
        "[first, after the last] of whole numbers with 0 <= first < after the last, or null",
        lambda value: value is None or (PAIR.fits(value) and value[0] < value[1]),
    ),
    "contrast": _one_of("flair", "t1", "t2", "any"),
    "planes": _list_of("a list of axial, coronal, sagittal", _one_of("axial", "coronal", "sagittal")),
    "canvas_size": _list_of("[height, width] of whole numbers from 1 to 4096", SIZE, length=2),
    "num_workers": _whole(0, 256),
    "layout": _one_of("folders", "bids"),
    "label_values": _either(_list_of("a list of whole numbers above 0", _whole(1, 10**9)), NULL),
    "brain_extraction": _one_of("auto", "background"),
    "precision": _one_of(*PRECISIONS),
    "polarity": _one_of("hyperintense", "both"),
    "device": Rule("one that PyTorch can use here, such as cpu or cuda:0", _is_device),
    "subsets": _dict_of("file with a case name a line", is_path),
    "baselines": _dict_of("component that scores slices", callable),
}


def _hint(rule: Rule, value: object) -> str:
    if rule.words.startswith((PART.words, OPEN_PART.words)) and _is_number(value) and 1 < value <= 100:
        return "; did you pass a percentage?"
    if any(str(part).startswith("~") for part in (value if isinstance(value, list) else [value])):
        return "; write $HOME in place of ~, which the shell leaves as it is in quotes and after =."
    if rule.words.startswith(PATH.words) and _is_number(value):
        return "; write ./NAME for a folder, or '\"NAME\"' for a text, whose name is a number."
    return "."


def shown(value: object) -> str:
    """A value for a message, which is cut where it is long."""
    return text if len(text := repr(value)) <= 200 else f"{text[:200]}..."


def check_settings(**settings: Any) -> None:
    """Refuse values that an option at the top of a config cannot have.

    Args:
        settings: Options and their values.

    Raises:
        ValueError: When a value is of the wrong kind or outside its range.
    """
    for name, value in settings.items():
        rule = RULES[name]
        if not rule.fits(value):
            raise ValueError(f"`{name}` must be {rule.words}, got {shown(value)}{_hint(rule, value)}")
