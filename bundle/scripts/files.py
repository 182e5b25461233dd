"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"\n")
    except OSError as error:
        raise OSError(
            f"Cannot write in the output folder {folder} ({error.strerror}): set `output_dir` to a folder that can be "
            "written."
        ) from None
    return folder
