"""The one way to write a file: whole or not at all, and never over what this product did not write.

Before a file is put in its place, its SHA-256 is noted in the hidden record of a folder (a line for each time, as
`sha256sum` writes it). A file in the place of an output is replaced only where the record has what it holds: any
other is a person's, or was changed by one. As the note comes first, a run may be killed at any moment.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from .errors import STORAGE_ERRORS

RECORD = ".outputs.sha256"
OLDEST_PARTIAL = 24 * 3600  # seconds; no file takes longer to write

AnyPath = str | os.PathLike


def file_digest(path: AnyPath) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _place_of(path: AnyPath) -> Path:
    """Where a file is written: a link in its place is not followed, those of its folders are."""
    path = Path(os.path.abspath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _record_of(path: Path, folder: AnyPath | None) -> tuple[Path, str]:
    """The record that notes a file, and the name that the file has there."""
    start = path.parent if folder is None else Path(os.path.realpath(folder))
    return start / RECORD, Path(os.path.relpath(path, start)).as_posix()


def _noted_digests(path: Path, folder: AnyPath | None) -> set[str]:
    """What this product has put in the place of a file so far."""
    record, name = _record_of(path, folder)
    try:
        lines = record.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return set()
    return {line[:64] for line in lines if line[64:] == f"  {name}"}


def check_output(path: AnyPath, folder: AnyPath | None = None, replaces: str | None = None) -> str | None:
    """Refuse to write a file where something is that this product did not write, or that was changed since.

    Args:
        path: The file, there or not.
        folder: Whose record notes it; default: its own.
        replaces: Digest of a file that the user asked to replace.

    Returns:
        The digest of what is in its place; None where nothing is.

    Raises:
        ValueError: When something else, a symbolic link or a read-only file is in its place.
    """
    path = _place_of(path)
    if path.is_symlink():
        reason = "is a symbolic link, and what it leads to is not replaced"
    elif not path.exists():
        return None
    elif not path.is_file():
        reason = "is in the way, where a file is to be written"
    elif not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        reason = "is read-only"
    else:
        found, noted = file_digest(path), _noted_digests(path, folder)
        if found in noted or found == replaces or not path.stat().st_size:
            return found
        reason = "was changed since it was written" if noted else "is in the way, and no earlier output of this command"
    raise ValueError(f"{path} {reason}: move or delete it, or choose another output.")


def check_outputs(paths: Iterable[AnyPath]) -> None:
    """Refuse what `check_output` refuses of any of a run's files, before its work begins."""
    for path in paths:
        check_output(path)


@contextmanager
def atomic(path: AnyPath, folder: AnyPath | None = None, replaces: str | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in place when the block ends well.

    The temporary file carries the whole name of ``path`` at its end, so that writers which go by the suffix
    (``.nii.gz``, ``.png``) do the right thing. It is removed when the block fails, and ``path`` then is as it was, as
    it is where the new file holds the same. The content reaches the disk before the name does, so that a power failure
    leaves the earlier file or the new one.

    Args:
        path: The file to write; its folder is made.
        folder: As in `check_output`.
        replaces: Likewise. What is written then is the user's, and not noted.

    Raises:
        OSError: When the folder cannot be made or written, or the disk is full.
        ValueError: What `check_output` refuses, before the block and after it.
    """
    path = _place_of(path)
    check_output(path, folder, replaces)
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_partials(path)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        digest = file_digest(temporary)
        if check_output(path, folder, replaces) != digest:
            if replaces is None:
                _note(path, folder, digest)
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in STORAGE_ERRORS or not error.strerror:
            raise OSError(
                f"Cannot write {path} ({error.strerror or 'the disk may be full'}): remedy that, and run the same "
                "command again; an earlier file of this name is as it was."
            ) from None
        raise OSError(
            f"{path} cannot be written ({error.strerror}): make its folder writable, or choose another output."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _note(path: Path, folder: AnyPath | None, digest: str) -> None:
    record, name = _record_of(path, folder)
    with record.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"\n{digest}  {name}")  # the line feed first: a killed run may have left half a line
        file.flush()
        os.fsync(file.fileno())


def _remove_old_partials(path: Path) -> None:
    """Remove what runs that were killed long ago left of a file; the numbers of their processes would say nothing."""
    for leftover in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > OLDEST_PARTIAL:
                leftover.unlink()


@contextmanager
def locked(path: AnyPath, wait: bool = False) -> Iterator[None]:
    """Keep other runs, of this machine or others, from writing a file until the block ends.

    The system unlocks it when the process ends, however it ends. Nothing is locked on a file system without locks.

    Args:
        path: The file, there or not; its folder is made.
        wait: Wait for another run that holds it, as for what takes a moment to write.

    Raises:
        RuntimeError: When another run writes it.
    """
    path = _place_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise RuntimeError(f"Another run is writing {path}: wait until it ends, or choose another output.") from None
    except OSError:
        pass  # no locks here
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)  # while it is held: who waits for it sees that, and makes another
        lock.release()


def check_writable(folder: AnyPath) -> Path:
    """Make ``folder`` and show that a file can be written in it, before any long work starts.

    Raises:
        OSError: When it cannot be made or written to.
    """
    folder = Path(folder)
    if str(folder).startswith("~"):
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


def read_json(path: AnyPath) -> dict:
    """The content of a JSON file, empty where there is no object that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_text(path: AnyPath, text: str) -> None:
    """Write a text, atomically; what UTF-8 has no form for becomes a question mark."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: AnyPath, content: object) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=4) + "\n")


def write_csv(path: AnyPath, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table with a line of ``columns``, atomically; None is empty there."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def save_tensors(path: AnyPath, content: object, folder: AnyPath | None = None, replaces: str | None = None) -> None:
    """Write what `torch.save` takes, atomically; PyTorch's own writer does not say when a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path, folder, replaces) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_tensors(path: AnyPath) -> object:
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
