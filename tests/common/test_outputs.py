"""Files are whole or as they were, what a person made or changed stays, and a run may be killed at any moment."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS
from ignite.engine import Engine
from scripts.common.model_file import save_model
from scripts.common.outputs import (
    RECORD,
    atomic,
    check_output,
    check_writable,
    locked,
    write_csv,
    write_json,
    write_text,
)
from scripts.inference.writer import AtomicNibabelWriter
from scripts.training.checkpoint import TrainingCheckpoint


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


def test_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deeper" / "file.nii.gz"
    for content in ("first", "second"):
        with atomic(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent and temporary.name.endswith(path.name)
            assert content == "first" or path.read_text() == "first"  # readers still meet the old one
        assert path.read_text() == content and visible(path.parent) == [path.name]


def test_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    write_text(tmp_path / "file.txt", "whole")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "file.txt").read_text() == "whole" and visible(tmp_path) == ["file.txt"]


def test_file_that_would_hold_the_same_is_not_touched(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    before = os.stat(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"a": 1})
    assert os.path.samestat(before, os.stat(tmp_path / "a.json"))
    assert len((tmp_path / RECORD).read_text().split()) == 2


def half(content, path, *args, **kwargs):
    """Stands for a writer whose disk fills up."""
    with open(path, "wb") as file:
        file.write(b"half")
    raise OSError(errno.ENOSPC, "no space left")


def save(content, path, real=torch.save):
    """`torch.save`, whose disk fills up too."""
    return real(content, path) if isinstance(path, io.BytesIO) else half(content, path)


def write_model(path, model):
    save_model(model, path)


def write_checkpoint(path, model):
    checkpoint = TrainingCheckpoint(path, {"network": model}, {}, resume=False)
    trainer = Engine(lambda engine, batch: None)
    checkpoint.attach(trainer)
    trainer.run([0], max_epochs=1)


def write_volume(path, model):
    writer = AtomicNibabelWriter()
    writer.set_data_array(np.zeros((1, 3, 4, 5), np.float32), channel_dim=0)
    writer.set_metadata({"affine": np.eye(4)})
    writer.write(path)


@pytest.mark.parametrize("write", [write_model, write_checkpoint, write_volume])
def test_writer_that_fails_half_way_leaves_the_file_as_it_was(write, model, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    path = tmp_path / "file.nii.gz"
    write(path, model)
    whole = path.read_bytes()
    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: half(content, path))
    monkeypatch.setattr(nib, "save", half)
    with pytest.raises(OSError, match=f"Cannot write {path} .no space left"):
        write(path, model)
    assert path.read_bytes() == whole and visible(tmp_path) == [path.name]


def link_back(path):
    path.rename(path.with_name("far")), path.symlink_to("far")


def make_folder(path):
    path.unlink(missing_ok=True), path.mkdir()


IN_THE_WAY = {
    "changed": (lambda path: path.write_text("by hand"), "was changed since it was written"),
    "another's": (
        lambda path: (path.with_name(RECORD).unlink(), path.write_text("mine")),
        "is in the way, and no earl",
    ),
    "moved away and linked back": (link_back, "is a symbolic link, and what it leads to is not replaced"),
    "link to nothing": (lambda path: (path.unlink(), path.symlink_to("gone")), "is a symbolic link"),
    "folder": (make_folder, "is in the way, where a file is to be written"),
    "read-only": (lambda path: path.chmod(0o444), "is read-only: move or delete it"),
}


def content_of(path):
    return os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()


def state_of(folder):
    return {path: content_of(path) for path in folder.rglob("*")}


def test_content_reaches_the_disk_before_the_note_and_the_note_before_the_name(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (order.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}"))), sync(file))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    write_text(tmp_path / "a.txt", "content")
    assert order[0].endswith(".partial.a.txt") and order[1:] == [RECORD, "replace"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_a_person_made_or_changed_stays(tmp_path, kind, when):
    path = tmp_path / "out" / "lesions.csv"
    write_text(path, "ours")
    change, reason = IN_THE_WAY[kind]
    if when == "before":
        change(path)
    before = state_of(tmp_path)
    with pytest.raises(ValueError, match=f"{path} {reason}"), atomic(path) as temporary:
        assert when == "meanwhile"  # refused before any work otherwise
        temporary.write_text("new")
        change(path)
        before = state_of(tmp_path)
        before.pop(temporary)
    assert state_of(tmp_path) == before
    with pytest.raises(ValueError, match=reason):
        check_output(path)


def test_what_is_as_it_was_written_may_be_replaced_and_so_may_what_holds_nothing(tmp_path):
    path = tmp_path / "a[1].csv"
    for number in range(3):
        write_csv(path, ["a"], [{"a": number}])
    path.write_text("")  # after a power failure
    write_csv(path, ["a"], [{"a": 4}])
    path.unlink()
    write_csv(path, ["a"], [{"a": 5}])
    path.with_name("other name").hardlink_to(path)
    write_csv(path, ["a"], [{"a": 6}])
    assert path.read_text().split() == ["a", "6"] and path.with_name("other name").read_text().split() == ["a", "5"]


def test_a_file_where_a_folder_is_needed_stays(tmp_path):
    (tmp_path / "case").write_text("mine")
    with pytest.raises(OSError, match=f"{tmp_path}/case/anat/case_record.json cannot be written .Not a directory.: "):
        write_text(tmp_path / "case" / "anat" / "case_record.json", "")
    assert (tmp_path / "case").read_text() == "mine"


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "far").mkdir(), (tmp_path / "out").symlink_to("far")
    for number in range(2):
        write_json(tmp_path / "out/a.json", number)
    assert (tmp_path / "out").is_symlink() and visible(tmp_path / "far") == ["a.json"]


def test_file_that_the_user_asked_to_replace_is_replaced_once_and_stays_the_user_s(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("theirs")
    with atomic(path, replaces=digest("theirs")) as temporary:
        temporary.write_text("calibrated")
    with pytest.raises(ValueError, match="is in the way"):
        write_text(path, "trained")
    assert path.read_text() == "calibrated"


def test_record_of_another_folder_notes_a_file_as_its_own(tmp_path):
    model, folder = tmp_path / "models" / "a.pt", tmp_path / "run"
    folder.mkdir()
    for text in ("first", "second"):
        with atomic(model, folder) as temporary:
            temporary.write_text(text)
    with pytest.raises(ValueError, match="is in the way"):
        write_text(model, "of another training")
    assert model.read_text() == "second"


def test_record_changed_by_hand_lets_nothing_be_replaced_that_it_does_not_name(tmp_path):
    write_text(tmp_path / "a", "ours")
    (tmp_path / "a").write_text("by hand")
    for record in ("", "\0\xff", "[]", f"{digest('by hand')}  b", f"{digest('by hand')} a", "0" * 64 + "  a"):
        (tmp_path / RECORD).write_text(record, encoding="latin-1")
        with pytest.raises(ValueError, match="move or delete it, or choose another output"):
            write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "by hand"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from scripts.common import outputs
from scripts.common.outputs import write_text
kill = lambda *arguments: os.kill(os.getpid(), 9)
if sys.argv[3] == "before the note":
    outputs._note = kill
elif sys.argv[3] == "between note and replace":
    outputs.os.replace = kill
elif sys.argv[3] == "within the note":
    outputs._note = lambda path, folder, digest: (open(path.parent / ".outputs.sha256", "a").write("\\n0123"), kill())
write_text(sys.argv[2], "second")
kill()
"""


@pytest.mark.parametrize("moment", ["before the note", "within the note", "between note and replace", "after all"])
def test_run_that_is_killed_goes_on(tmp_path, moment):
    path = tmp_path / "file"
    write_text(path, "first")
    command = [sys.executable, "-c", KILLED, str(CONFIGS.parent), str(path), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_text() == ("second" if moment == "after all" else "first")
    left = [name for name in visible(tmp_path) if name != "file"]
    assert len(left) == (moment != "after all")
    write_text(path, "third")
    assert path.read_text() == "third" and left == [name for name in visible(tmp_path) if name != "file"]
    for name in left:  # what is that old is no other run's
        os.utime(tmp_path / name, (time.time() - 2 * 24 * 3600,) * 2)
    write_text(path, "fourth")
    assert visible(tmp_path) == ["file"]


HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from scripts.common.outputs import locked
with locked(sys.argv[2]):
    if os.fork() == 0:
        time.sleep(60)  # a process that outlives its run
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_file_is_one_run_s_until_it_ends_however_it_ends(tmp_path):
    path = tmp_path / "case" / "case_record.json"
    command = [sys.executable, "-c", HOLD, str(CONFIGS.parent), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(RuntimeError, match=f"Another run is writing {path}: wait until it ends"):
                locked(path).__enter__()
            with locked(path.with_name("other")):
                pass
            process.kill(), process.wait()
            with locked(path), locked(path.with_name("another")):
                assert len(visible(path.parent)) == 2
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert visible(path.parent) == []


def test_folder_of_a_home_that_nothing_replaces_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"the output folder ~/out, whose ~ is not replaced: write \$HOME in its place"):
        check_writable("~/out")
    assert not any(tmp_path.iterdir())
