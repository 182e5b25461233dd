"""What each id at the top of the configs may be: checked before any work, so that a slip is one sentence."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import torch
from monai.bundle import ConfigComponent, ConfigExpression, ConfigItem, ReferenceResolver

from ..method.precision import PRECISIONS
from ..method.threshold_rule import THRESHOLD_RULES
from .paths import is_of_home

LONGEST_NAME = 200  # bytes of a case's name: endings of files come on top, and file systems take 255
LONGEST_PATH = 3000  # bytes


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
    """Whether a text may be the path of a file: of one line, not longer than file systems take, and without ~."""
    if not is_text(value) or is_of_home(value):
        return False
    return len(value.encode()) <= LONGEST_PATH and max(len(part.encode()) for part in value.split(os.sep)) <= 255


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_list(value: object, fits: Callable[[Any], bool]) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(fits, value))


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _real(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_real(value) and low <= value <= high)


def _positive(high: float) -> Rule:
    words = "a number above 0" + ("" if math.isinf(high) else f", at most {high:g}")
    return Rule(words, lambda value: _is_real(value) and 0 < value <= high)


def _either(rule: Rule) -> Rule:
    return Rule(f"{rule.words}, or null", lambda value: value is None or rule.fits(value))


def _usable_device(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, int) and torch.ones(1, device=value).item() == 1
    except Exception:  # backends that are not there raise what they like
        return False


def _ordered_pair(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: _is_list(value, fits) and len(value) == 2 and 0 <= value[0] <= value[1]


PART = Rule("in [0, 1]", lambda value: _is_real(value) and 0 <= value <= 1)
OPEN_PART = Rule("in (0, 1)", lambda value: _is_real(value) and 0 < value < 1)
SWITCH = Rule("True or False", lambda value: isinstance(value, bool))
NAME = Rule("a name without slashes", is_name)
PATH = Rule("the path of a file or folder, as text", is_path)
FILES = Rule("a file, or a list of files", lambda value: is_path(value) or _is_list(value, is_path))
FOLDERS = Rule("the path of a folder or file, or a list of folders", FILES.fits)
CASES = Rule(
    "a file, a list of case names",
    lambda value: is_path(value) or _is_list(value, lambda name: type(name) is int or is_path(name)),
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("bundle_root", "output_dir", "model_file", "results_dir", "label_maps_dir"), PATH),
    "dataset_dir": FOLDERS,
    **dict.fromkeys(("brain_mask", "healthy_dir"), _either(PATH)),
    **dict.fromkeys(("split", "split_training", "split_validation", "split_testing", "exclude"), _either(CASES)),
    "image": _either(FILES),
    "case": _either(NAME),
    "label": Rule(
        "a name such as seg, or PIPELINE/NAME",
        lambda value: isinstance(value, str) and value.count("/") < 2 and all(map(is_name, value.split("/"))),
    ),
    "modalities": _either(Rule("a list of names such as ['flair']", lambda value: _is_list(value, is_name))),
    "trained_networks": Rule("a list of names such as ['masked']", lambda value: _is_list(value, is_name)),
    "slice_range": Rule(
        "[first, after the last] of whole numbers with 0 <= first < after the last",
        lambda value: (
            value is None or (_ordered_pair(lambda k: type(k) is int and k < 2**31)(value) and value[0] < value[1])
        ),
    ),
    **dict.fromkeys(("upper_fraction", "lower_fraction", "mirror_weight"), _either(PART)),
    **dict.fromkeys(("stop_shrink", "noise_fraction", "lesion_fraction"), PART),
    **dict.fromkeys(("first_fraction", "exceed_fraction", "certain_fraction"), OPEN_PART),
    **dict.fromkeys(
        ("allow_outside", "resume", "fast", "save_brain_mask", "pictures", "native_grid"),
        SWITCH,
    ),
    **dict.fromkeys(
        ("unlabeled_are_healthy", "certainly_healthy"),
        SWITCH,
    ),
    **dict.fromkeys(("iterations", "validation_interval", "max_passes"), _whole(1, 10**9)),
    "warmup_iterations": _whole(0, 10**9),
    "batch_size": _whole(1, 4096),
    "lower_over_volume": _either(SWITCH),
    "image_size": _either(_whole(1, 2048)),
    "least_pixels": _whole(0, 10**9),
    "slice_step": _whole(1, 10**6),
    "volumes_per_head": _whole(1, 1000),
    "validation_heads": _whole(1, 1000),
    "contrast": Rule("one of flair, t1, t2, any", lambda value: value in ("flair", "t1", "t2", "any")),
    "planes": Rule(
        "a list of axial, coronal, sagittal",
        lambda value: _is_list(value, lambda name: name in ("axial", "coronal", "sagittal")),
    ),
    "crop_size": Rule(
        "[height, width] of whole numbers from 1 to 2048",
        lambda value: _is_list(value, _whole(1, 2048).fits) and len(value) == 2,
    ),
    "doubt": _positive(math.inf),
    "num_workers": _either(_whole(0, 256)),
    "rank": _whole(0, 10**6),
    "seed": _whole(0, 2**32 - 1),
    "cache_rate": PART,
    "ema_momentum": _positive(1),
    "learning_rate": _positive(math.inf),
    "weight_decay": _real(0, 100),
    "largest_gradient_norm": _positive(math.inf),
    "threshold_scale": _positive(1000),
    "threshold_rule": Rule(
        f"one of {', '.join(THRESHOLD_RULES)}", lambda value: isinstance(value, str) and value in THRESHOLD_RULES
    ),
    "layout": Rule("folders or bids", lambda value: isinstance(value, str) and value in ("folders", "bids")),
    "precision": Rule(f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    "ssim_data_range": _positive(1e6),
    "sigma": _either(_real(0, 100)),
    "radius": _real(0, 10_000),
    "slice_selection": Rule(
        "{split: which slices}, such as {'training': 'healthy'}",
        lambda value: isinstance(value, Mapping) and all(isinstance(text, str) for text in [*value, *value.values()]),
    ),
    "noise_range": Rule(
        "[lowest, highest] of numbers from 0 to 100",
        lambda value: _ordered_pair(_is_real)(value) and value[1] <= 100,
    ),
    "sign": _either(
        Rule("bright or both", lambda value: value in ("bright", "both") if isinstance(value, str) else False)
    ),
    "device": Rule("one that PyTorch can use here, such as cpu or cuda:0", _usable_device),
    "subsets": Rule(
        "{name: file with a case name a line}",
        lambda value: isinstance(value, Mapping) and all(is_name(k) and is_path(v) for k, v in value.items()),
    ),
    "baselines": Rule(
        "{name: component that scores slices}",
        lambda value: isinstance(value, Mapping) and all(is_name(k) and callable(v) for k, v in value.items()),
    ),
}

ORDERED = ("certain_fraction", "exceed_fraction", "first_fraction")


def _hint(rule: Rule, value: object) -> str:
    if rule.words.startswith((PART.words, OPEN_PART.words)) and _is_real(value) and 1 < value <= 100:
        return "; did you pass a percentage?"
    if any(isinstance(part, str) and is_of_home(part) for part in (value if isinstance(value, list) else [value])):
        return "; write $HOME in place of ~, which the shell leaves as it is in quotes and after =."
    if rule in (PATH, FOLDERS, RULES["brain_mask"], RULES["label"]) and _is_real(value):
        return "; write ./NAME for a folder, or '\"NAME\"' for a text, whose name is a number."
    return "."


def check_settings(**settings: Any) -> None:
    """Refuse values that an id at the top of a config cannot have.

    Args:
        settings: Ids and their values.

    Raises:
        ValueError: When a value is of the wrong kind or outside its range.
    """
    for name, value in settings.items():
        rule = RULES[name]
        if not rule.fits(value):
            shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
            raise ValueError(f"`{name}` must be {rule.words}, got {shown}{_hint(rule, value)}")
    in_order = [settings[name] for name in ORDERED if name in settings]
    if in_order != sorted(in_order):
        raise ValueError(
            f"Expected {' <= '.join(ORDERED)}, got {', '.join(map(str, in_order))}: set them in this order."
        )


def check_config(resolver: ReferenceResolver, run_id: str) -> None:
    """Refuse a config that lacks something that a run needs, or whose ids have values that they cannot have.

    Values that are written down come first, then those that are worked out of them.

    Args:
        resolver: Of the config that runs; holds its files and the command line, merged.
        run_id: What is run; empty: all that is in the config.

    Raises:
        ValueError: When a part is missing, or a value is of the wrong kind or outside its range.
    """
    check_complete(resolver, run_id)
    top = {name: item for name, item in resolver.items.items() if name in RULES}
    written = {name: item.get_config() for name, item in top.items() if not _references(item)}
    check_settings(**written)
    check_settings(**{name: resolver.get_resolved_content(name) for name in sorted(top.keys() - written, key=_last)})


def _references(item: ConfigItem) -> bool:
    """Whether a value is worked out by MONAI: an expression, a component, or something that holds either."""
    config = item.get_config()
    own = isinstance(item, (ConfigComponent, ConfigExpression))
    return own or bool(ReferenceResolver.find_refs_in_config(config, item.get_id()))


def _last(name: str) -> bool:
    """What takes long comes last: baselines may read slices, and a data set may be made."""
    return name in ("baselines", "dataset_dir")


def check_complete(resolver: ReferenceResolver, run_id: str) -> None:
    """Refuse a config that refers to what it does not hold, as an overlay without its base does.

    Args:
        resolver: Of the config that runs.
        run_id: What is run, with all that it needs; empty: all that is in the config.

    Raises:
        ValueError: When something is missing.
    """
    if missing := sorted(needed_ids(resolver, run_id) - resolver.items.keys()):
        base = resolver.items.get("_base_")
        remedy = f"put {base.get_config().replace(', ', ' and ')}" if base else "put the file that it is an overlay of"
        raise ValueError(f"The config has no `{missing[0].replace('::', '#')}`: {remedy} first in --config_file.")


def needed_ids(resolver: ReferenceResolver, run_id: str) -> set[str]:
    """All ids that an id of a config refers to, and what these refer to, and so on."""
    needed, waiting = set(), [run_id]
    while waiting:
        name = waiting.pop()
        if name not in needed and (item := resolver.items.get(name)) is not None:
            waiting += ReferenceResolver.find_refs_in_config(item.get_config(), name)
        needed.add(name)
    return needed
