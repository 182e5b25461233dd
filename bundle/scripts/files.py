"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in place when the block ends well.

    The temporary file carries the whole name of ``path`` at its end, so that writers which go by the suffix
    (``.nii.gz``, ``.png``) do the right thing. It is removed when the block fails, and ``path`` then is as it was.

    Args:
        path: The file to write; its folder is made.

    Raises:
        OSError: When the folder cannot be made or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: str | os.PathLike) -> object:
    """Read a file of tensors that others may have written; objects are never unpickled, so no code of it runs.

    Raises:
        ValueError: When it is no such file, or damaged.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise ValueError(f"{path} is no file")
    try:
        if zipfile.is_zipfile(path):  # torch itself overlooks damaged tensors
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"{damaged} differs from its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        detail = str(error).partition("\n")[0] if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} is not a file of network weights ({detail})") from None


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n")


def check_writable(folder: str | os.PathLike) -> Path:
    """Make ``folder`` and show that a file can be written in it, before any long work starts.

    Raises:
        OSError: When it cannot be made or written to.
    """
    folder = Path(folder)
    try:
        with atomic(folder / ".writable") as temporary:
            temporary.touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise OSError(
            f"Cannot write in the output folder {folder} ({error.strerror}): set `output_dir` to a folder that can be "
            "written."
        ) from None
    return folder
