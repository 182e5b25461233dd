"""What this product wrote, by its own records: nothing else is ever replaced or removed.

``<step>_record.json`` in a folder notes each file that a step wrote there with its SHA-256, and each folder with that
of every file in it. What differs from that was changed by a person. While a step writes, and after one that was
killed meanwhile, the SHA-256 is null: then the file may be a person's, and what replaces it keeps it beside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import check_writable, not_empty, read_tensors, watch, write_json
from .paths import bundle_root
from .share import first_checks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PRODUCT = "brain_mri_anomaly_segmentation"
Digest = str | dict[str, str] | None

_locked: dict[str, int] = {}  # folder to the open file that holds its lock


def _let_go() -> None:
    """Close the locks that a worker inherits: it must not hold that of a run that was killed."""
    while _locked:
        os.close(_locked.popitem()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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


def content_digest(path: str | os.PathLike) -> Digest:
    """SHA-256 of a file, or of each file below a folder by its path in it; None where there is neither."""
    path = Path(path)
    if not path.is_dir():
        return file_digest(path) if path.is_file() else None
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(path).as_posix(): file_digest(file) for file in files}


def check_unchanged(path: Path, noted: Digest, step: str, option: str = "output_dir") -> None:
    """Refuse to replace what was changed since it was written, or is read-only.

    Args:
        path: A file or a folder, which may be gone.
        noted: What `content_digest` gave then; None: not known.
        step: What wrote it.
        option: The id that names its place.

    Raises:
        ValueError: When it differs, or is or holds a symbolic link, naming it.
        OSError: When it is a read-only file.
    """
    check_no_link([path], option)
    check_no_link(path.rglob("*") if path.is_dir() else [], option)
    check_not_read_only(path, option)
    if noted is None or not os.path.lexists(path):
        return
    found = content_digest(path)
    changed = [path] if found != noted and (path.is_dir() or not_empty(path)) else []
    if isinstance(found, Mapping) and isinstance(noted, Mapping):
        changed = [path / name for name, digest in found.items() if noted.get(name) != digest]
    if changed:
        raise ValueError(
            f"{changed[0]} was changed since `{step}` wrote it, or came later: move it, delete it, or set another "
            f"`{option}`."
        )


def check_no_link(places: Iterable[str | os.PathLike], option: str = "output_dir") -> None:
    """Refuse to write over a symbolic link, or through that of a folder: what it leads to is kept there by a person.

    Raises:
        ValueError: Naming the first one.
    """
    for place in places:
        if os.path.islink(place):
            raise ValueError(
                f"{place} is a symbolic link, and what it leads to is not replaced: move the link, or set another "
                f"`{option}`."
            )


def steps_below(folder: str | os.PathLike, path: str | os.PathLike) -> list[Path]:
    """The folders between a folder and what lies below it, and that itself at the end; elsewhere that alone."""
    parts = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(folder))).parts
    if parts[:1] == ("..",):
        return [Path(path)]
    return [Path(folder).joinpath(*parts[:number]) for number in range(1, len(parts) + 1)]


def check_not_read_only(path: str | os.PathLike, option: str = "output_dir") -> None:
    """Refuse to replace a file that nobody may write, though its folder can be written.

    Raises:
        OSError: When it is read-only.
    """
    if os.path.isfile(path) and not (os.stat(path).st_mode & 0o222 and os.access(path, os.W_OK)):
        raise OSError(f"{path} is read-only: make it writable, or set another `{option}`.")


def lock_folder(folder: str | os.PathLike, option: str = "output_dir") -> None:
    """Keep other runs out of a folder until `unlock_folder`, or until this process ends, however it ends.

    A process may lock a folder again that it has locked. A single file can be locked likewise.

    Of several processes of one run the first locks it. Where the file system knows no locks, nothing is locked.

    Args:
        folder: It exists, or nothing is locked.
        option: The id that names its place.

    Raises:
        RuntimeError: When another run writes there.
    """
    place = os.path.realpath(folder)
    if fcntl is None or place in _locked or os.environ.get("RANK", "0") != "0" or not os.access(place, os.R_OK):
        return
    number = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locked[place] = number
    except BlockingIOError:
        os.close(number)
        where = f"in {folder}" if os.path.isdir(place) else folder
        raise RuntimeError(f"Another run is writing {where}: wait until it ends, or set another `{option}`.") from None
    except OSError:
        os.close(number)


def unlock_folder(folder: str | os.PathLike) -> None:
    """Let other runs write there again: a process may live on after its run, as that of a notebook does."""
    number = _locked.pop(os.path.realpath(folder), None)
    if number is not None:
        os.close(number)


def _record_file(folder: str | os.PathLike, step: str) -> Path:
    return Path(folder) / f"{step}_record.json"


def _owned(record: Mapping[str, object]) -> dict[str, Digest]:
    """The files of a record; those of older ones have names alone."""
    files = record.get("files")
    if isinstance(files, list):
        return {name: None for name in files if isinstance(name, str)}
    return dict(files) if isinstance(files, dict) else {}


def check_claim(
    folder: str | os.PathLike, step: str, names: Iterable[str], option: str = "output_dir"
) -> dict[str, Digest]:
    """What ``<step>_record.json`` notes as this product's.

    Args:
        folder: Where the files are, or will be.
        step: What writes them.
        names: Files, or folders for this step alone, that it is about to write; relative to ``folder``.
        option: The id that names their place.

    Raises:
        ValueError: When one of them is there already and the record does not say that this product wrote it, or it
            was changed since.
        OSError: When one of them is read-only.
    """
    path = _record_file(folder, step)
    names = [*names]
    # looked for before the record is read: another process of the same step may claim and write them meanwhile
    recorded, present = os.path.lexists(path), [name for name in names if os.path.lexists(path.parent / name)]
    record = read_record(path)
    if recorded and record.get("product") != PRODUCT:
        raise ValueError(f"{path} is in the way, which this product did not write: move it, or set `output_dir`.")
    owned = _owned(record)
    check_no_link([path], option)
    for name in present:
        place = Path(os.path.normpath(path.parent / name))
        if name not in owned:
            raise ValueError(
                f"{place} is in the way, which `{step}` did not write: move it, or set another `{option}`."
            )
        check_no_link(steps_below(path.parent, place), option)
        check_unchanged(place, owned[name], step, option)
    watch(
        (path.parent / name for name in names),
        unsure=(path.parent / name for name in present if owned[name] is None),
    )
    return owned


def claim(folder: str | os.PathLike, step: str, names: Iterable[str]) -> None:
    """Note that files of a folder are this product's, before they are written; see `check_claim`.

    Args:
        folder: It exists.
        step: What writes them.
        names: Files, or folders for this step alone.

    Raises:
        ValueError: What `check_claim` finds.
        OSError: Likewise.
    """
    names = [*names]
    owned = check_claim(folder, step, names)
    _note(folder, step, {**dict.fromkeys(names), **owned})


def begin(folder: str | os.PathLike, step: str, names: Iterable[str]) -> None:
    """Note that files of a folder are being written: whatever they hold from now on is this product's."""
    _note(folder, step, {**_owned(read_record(_record_file(folder, step))), **dict.fromkeys(names)})


def settle(folder: str | os.PathLike, step: str, names: Iterable[str]) -> None:
    """Note what files of a folder hold, now that they are written; other processes may write the same meanwhile."""
    names, path = [*names], _record_file(folder, step)
    while True:
        found = {name: content_digest(path.parent / name) for name in names}
        owned = _owned(read_record(path))
        if all(name in owned and owned[name] == digest for name, digest in found.items()):
            return
        _note(folder, step, {**owned, **found})


def _note(folder: str | os.PathLike, step: str, files: Mapping[str, Digest]) -> None:
    path = _record_file(folder, step)
    record = {"product": PRODUCT, "step": step, "files": dict(sorted(files.items()))}
    before = read_record(path)
    if before and before.get("product") != PRODUCT:
        raise ValueError(f"{path} came while this run worked and is not this product's: move it, and run again.")
    if before != record:
        write_json(path, record)


@contextmanager
def written(folder: str | os.PathLike, step: str, names: Iterable[str]) -> Iterator[None]:
    """Claim files of a folder, and note what they hold when the block that writes them ends.

    Raises:
        ValueError: What `check_claim` finds.
        OSError: Likewise.
    """
    names = [*names]
    claim(folder, step, names)
    begin(folder, step, names)
    yield
    settle(folder, step, names)


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


def check_not_shipped(model_file: str | os.PathLike) -> None:
    """Refuse to write over the model that came with the bundle, by whatever link.

    Raises:
        ValueError: When it is that model.
    """
    shipped = os.path.join(bundle_root(), "models", "model.pt")
    if os.path.exists(shipped) and is_same_file(model_file, shipped):
        raise ValueError(f"{model_file} is the model of the bundle: copy it, and set `model_file` to the copy.")


TRAINING = "training"  # the step whose record, beside the checkpoint, notes the model file


def model_name(model_file: str | os.PathLike, checkpoint: str | os.PathLike) -> str:
    """The model file as the record of a training names it: relative to the folder of the checkpoint."""
    return os.path.relpath(os.path.abspath(model_file), Path(checkpoint).absolute().parent)


def check_outputs(
    model_file: str, checkpoint: str, resume: bool = False, updates: bool = False, anew: bool = False
) -> None:
    """Refuse outputs of a training that cannot be written or would replace others, before any long work starts.

    Of several processes the first, which writes them, looks for all.

    Args:
        model_file: Where the model will go.
        checkpoint: Where the checkpoint is, or will be.
        resume: Whether to go on from the checkpoint.
        updates: Whether some networks are trained alone, the others being those of the model file.
        anew: Whether checkpoint and model file are there to be replaced, as those of a server that trains on request.

    Raises:
        OSError: When a folder cannot be made or written to, or the model file is read-only.
        ValueError: When one of them is there and is no file of this product, or that of another training.
        RuntimeError: When another run writes in the folder of the checkpoint.
    """
    first_checks(lambda: _check_outputs(model_file, checkpoint, resume, updates, anew))


def _check_outputs(model_file: str, checkpoint: str, resume: bool, updates: bool, anew: bool) -> None:
    folder = Path(checkpoint).absolute().parent
    for other in (checkpoint, _record_file(folder, TRAINING), folder / "tensorboard"):
        if is_same_file(model_file, other):
            raise ValueError(
                f"`model_file` is {model_file}, where this training writes something else: set another `model_file`."
            )
    if os.path.lexists(folder / "tensorboard") and not (folder / "tensorboard").is_dir():
        raise ValueError(f"{folder / 'tensorboard'} is in the way, which training did not write: move it.")
    if not anew:
        check_not_shipped(model_file)
    for path in (checkpoint, model_file):
        check_writable(Path(path).absolute().parent)
    check_no_link([checkpoint])
    check_no_link([model_file], "model_file")
    lock_folder(folder)
    check_replaceable(model_file, checkpoint)
    check_not_read_only(model_file, "model_file")
    watch([model_file, checkpoint])
    if anew:
        return
    if not resume and os.path.lexists(checkpoint):
        raise ValueError(
            f"{checkpoint} holds a training already: add --resume True to go on with it, set another `output_dir`, or "
            "delete it to train anew."
        )
    if not updates:
        check_claim(folder, TRAINING, [model_name(model_file, checkpoint)], "model_file")
