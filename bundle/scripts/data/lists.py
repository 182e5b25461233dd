"""Names and lists of cases that others may have written: read, and refused where they could do harm."""

from __future__ import annotations

import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path

from ..common.checks import is_path, shown

UTF_16 = (BOM_UTF16_LE, BOM_UTF16_BE)  # how text files of PowerShell begin


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


def read_split(split: str | Sequence[str], what: str = "The split") -> list[str]:
    """Case names of a split: a list, or a text file with one name a line (blank lines and # comments are skipped).

    Args:
        split: The file or the list.
        what: What it is, for the messages.

    Raises:
        FileNotFoundError: When the file does not exist.
        ValueError: When it names no case, or one twice, or what can be none.
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
    else:
        names = [str(name) if type(name) is int else name for name in split]
    wrong = next((name for name in names if not is_path(name)), None)
    if wrong is not None:
        raise ValueError(f"{what} names {shown(wrong)}, which is no case name: give names of folders.")
    if not names:
        raise ValueError(f"{what} names no case: put one case name on each line, or set the split to null.")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{what} names {twice[0]} twice: list each case once.")
    return names
