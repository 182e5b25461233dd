"""Names and lists of cases that others may have written: read, and refused where they could do harm."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path

from ..common.checks import LONGEST_NAME, is_name, is_path

UTF_16 = (BOM_UTF16_LE, BOM_UTF16_BE)  # how text files of PowerShell begin


def existing_folder(dataset_dir: str | os.PathLike) -> Path:
    if not isinstance(dataset_dir, (str, os.PathLike)):
        raise ValueError(f"`dataset_dir` must be one folder here, got {shown(dataset_dir)}.")
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}: set `dataset_dir` to the folder that holds the data.")
    return folder


def check_case_name(name: object, source: object) -> None:
    """Refuse a case's name that cannot be that of a folder.

    Raises:
        ValueError: When it is no text, or has a slash, a leading dot or a control character, or is too long.
    """
    if not is_name(name):
        raise ValueError(
            f"{source} has the case name {shown(name)}: use one line of text without slashes and without a leading "
            f"dot, of at most {LONGEST_NAME} bytes."
        )


def shown(value: object) -> str:
    return text if len(text := repr(value)) <= 200 else f"{text[:200]}..."


def inside(root: Path, name: object, source: object, allow_outside: bool = False) -> Path:
    """The path of ``name`` below ``root``; refuses names that lead out of it, unless that is allowed.

    Links are followed: what lies in the data folder is its owner's choice, a list may be another's.
    """
    if not is_path(name):
        raise ValueError(f"{source} names {shown(name)}, which is no file name: list names as text of one line.")
    inside = not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] not in (os.pardir, os.curdir)
    if not inside and not allow_outside:
        raise ValueError(
            f"{source} names {name!r}, which is outside {root}: list only names inside the data folder, or set "
            "`allow_outside` when you trust the list."
        )
    return root / name


def read_json(path: Path, kind: str) -> object:
    """The content of a JSON file that others may have written.

    Args:
        path: The file.
        kind: What it should be and where it comes from, for the message.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}: give {kind}.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): give {kind}.") from None


def read_split(split: str | Sequence[str], what: str = "The split") -> list[str]:
    """Case names of a split: a list, or a text file with one name a line (blank lines and # comments are skipped).

    Args:
        split: The file or the list.
        what: What it is, for the messages.

    Raises:
        FileNotFoundError: When the file does not exist.
        ValueError: When it is of another kind, or names no case, or one twice.
    """
    if isinstance(split, str):
        path = Path(split)
        what = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"No split file {path}: give a text file with one case name a line, or null.")
        try:
            content = path.read_bytes()
            lines = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"The split file {path} is no text file: give one case name a line.") from None
        names = [name for line in lines if (name := line.partition("#")[0].strip())]
    elif isinstance(split, Sequence):
        names = [str(name) if type(name) is int else name for name in split]
    else:
        raise ValueError(f"A split must be a file, a list of case names, or null, got {split!r}.")
    wrong = next((name for name in names if not is_path(name)), None)
    if wrong is not None:
        raise ValueError(f"{what} names {shown(wrong)}, which is no case name: give names of folders.")
    if not names:
        raise ValueError(f"{what} names no case: put one case name on each line, or set the split to null.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{what} names {twice[0]} twice: list each case once.")
    return names
