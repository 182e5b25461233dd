"""What this product wrote, by its own records: nothing else is ever replaced or removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import check_writable, read_tensors, write_json

PRODUCT = "brain_mri_anomaly_segmentation"


def is_same_file(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Whether two paths lead to one file, by whatever links."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


def check_no_input(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike]) -> None:
    """Refuse outputs that would replace an input of the same run.

    Raises:
        ValueError: When an output is an input.
    """
    read = {os.path.realpath(path) for path in inputs}
    read_numbers = {(status.st_dev, status.st_ino) for status in map(os.stat, filter(os.path.exists, read))}
    for output in outputs:
        status = os.stat(output) if os.path.exists(output) else None
        same = status is not None and (status.st_dev, status.st_ino) in read_numbers
        if same or os.path.realpath(output) in read:
            raise ValueError(f"{output} is an input of this run and would be replaced: set another `output_dir`.")


def file_digest(path: str | os.PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a record, empty where there is none that can be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_claim(folder: str | os.PathLike, step: str, names: Iterable[str]) -> list[str]:
    """The files of a folder that ``<step>_record.json`` notes as this product's.

    Args:
        folder: Where they are, or will be.
        step: What writes them.
        names: Files, or folders for this step alone, that it is about to write.

    Raises:
        ValueError: When one of them is there already and the record does not say that this product wrote it.
    """
    path = Path(folder) / f"{step}_record.json"
    # looked for before the record is read: another process of the same step may claim and write them meanwhile
    recorded, present = os.path.lexists(path), [name for name in names if os.path.lexists(path.parent / name)]
    record = read_record(path)
    if recorded and record.get("product") != PRODUCT:
        raise ValueError(f"{path} is in the way, which this product did not write: move it, or set `output_dir`.")
    owned = record.get("files")
    owned = [name for name in owned if isinstance(name, str)] if isinstance(owned, list) else []
    for name in present:
        if name not in owned:
            raise ValueError(
                f"{path.parent / name} is in the way, which `{step}` did not write: move it, or set another "
                "`output_dir`."
            )
    return owned


def claim(folder: str | os.PathLike, step: str, names: Iterable[str]) -> None:
    """Note in ``<step>_record.json`` that files of a folder are this product's, before they are written.

    Args:
        folder: It exists.
        step: What writes them.
        names: Files, or folders for this step alone.

    Raises:
        ValueError: What `check_claim` finds.
    """
    names = [*names]
    owned = check_claim(folder, step, names)
    files = sorted({*owned, *names})
    if owned != files:
        write_json(Path(folder) / f"{step}_record.json", {"product": PRODUCT, "step": step, "files": files})


def check_replaceable(model_file: str | os.PathLike | None = None, checkpoint: str | os.PathLike | None = None) -> None:
    """Refuse a model file or a checkpoint to write that is there already and is another's.

    Raises:
        ValueError: When one of them is there and is no file of this product.
    """
    for path, key, option in ((model_file, "threshold", "model_file"), (checkpoint, "trainer", "output_dir")):
        if path is None or not os.path.lexists(path):
            continue
        try:
            content = read_tensors(path)
        except ValueError:
            content = None
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path} is in the way, which training did not write: move it, or set another `{option}`.")


def check_outputs(model_file: str, checkpoint: str) -> None:
    """Refuse a model file or a checkpoint that cannot be written, or is another's, before any long work starts.

    Raises:
        OSError: When a folder cannot be made or written to.
        ValueError: When one of them is there and is no file of this product.
    """
    for path in (checkpoint, model_file):
        check_writable(Path(path).absolute().parent)
    check_replaceable(model_file, checkpoint)
