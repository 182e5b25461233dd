"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from .paths import is_of_home

Signature = tuple[int, int, int] | None


_found: dict[str, Signature] = {}  # what was in the place of each output when the run began
_written: dict[str, Signature] = {}  # what this process has put there since
_unsure: set[str] = set()  # files and folders that an interrupted run began: a person may have changed them since


def watch(paths: Iterable[str | os.PathLike], unsure: Iterable[str | os.PathLike] = ()) -> None:
    """Note what is in the place of a run's outputs, so that `atomic` replaces nothing that comes there later.

    With several processes nothing is noted: one may write what another reads.

    Args:
        paths: Files or folders, there or not.
        unsure: Those of them whose content is not known to be this product's; `atomic` keeps it under another name.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    for name in [str(place_of(path)) for path in paths]:
        _found[name] = _signature(name)
        _unsure.discard(name)
    _unsure.update(str(place_of(path)) for path in unsure)


def place_of(path: str | os.PathLike) -> Path:
    """Where a file is written: a link in its place is not followed, those of its folders are."""
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _signature(path: str | os.PathLike) -> Signature:
    """What tells whether a file is still the same; None where there is none, or an empty one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size) if status.st_size else None


def _make_room(path: Path) -> None:
    """Refuse to replace what came or changed while the run worked; keep what may be a person's under another name."""
    found, name = _signature(path), str(path)
    if not path.is_symlink() and (found is None or found == _written.get(name)):
        return
    if name in _found and found != _found[name]:
        raise ValueError(f"{path} came or changed while this run worked: move it, and run the same command again.")
    if path.is_symlink():
        print(f"{path} was a symbolic link: it is kept as {keep_beside(path).name}.")
    elif _unsure.intersection(map(str, (path, *path.parents))):
        print(f"{path} was there from an interrupted run: it is kept as {keep_beside(path).name}.")


def keep_beside(path: Path) -> Path:
    """Give a file or a folder a new name beside its own."""
    places = (path.with_name(f"{path.name}.kept{number}") for number in itertools.count(1))
    kept = next(place for place in places if not os.path.lexists(place))
    os.rename(path, kept)
    return kept


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in place when the block ends well.

    What a symbolic link leads to is never changed: the file takes the place of the link, which is kept beside it.

    The temporary file carries the whole name of ``path`` at its end, so that writers which go by the suffix
    (``.nii.gz``, ``.png``) do the right thing. It is removed when the block fails, and ``path`` then is as it was.
    What runs that were killed have left of ``path`` is removed. The content reaches the disk before the name does, so
    that a power failure leaves the earlier file or the new one.

    Args:
        path: The file to write; its folder is made.

    Raises:
        OSError: When the folder cannot be made or written, or the disk is full.
        ValueError: When `watch` noted the place and something else is there now.
    """
    path = place_of(path)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _make_room(path)
        os.replace(temporary, path)
        _written[str(path)] = _signature(path)
    except OSError as error:
        raise OSError(
            f"Cannot write {path} ({error.strerror or 'the disk may be full'}): remedy that, and run the same command "
            "again; an earlier file of this name is as it was."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` whose processes have ended."""
    for leftover in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        process = leftover.name.split(".")[1]
        if os.name == "posix" and process.isdigit() and has_ended(int(process)):
            leftover.unlink(missing_ok=True)


def has_ended(process: int) -> bool:
    """Whether a process of this machine is gone."""
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


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


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table with a line of ``columns``, atomically; None is empty there."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def save_tensors(path: str | os.PathLike, content: object) -> None:
    """Write what `torch.save` takes, atomically; PyTorch's own writer does not say when a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def not_empty(path: Path) -> bool:
    """Whether a file is there and holds something: what was written just before a power failure may not."""
    return path.is_file() and path.stat().st_size > 0


def check_writable(folder: str | os.PathLike) -> Path:
    """Make ``folder`` and show that a file can be written in it, before any long work starts.

    Raises:
        OSError: When it cannot be made or written to.
    """
    folder = Path(folder)
    if is_of_home(folder):
        raise OSError(f"Cannot write in the output folder {folder}, whose ~ is not replaced: write $HOME in its place.")
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
