"""Files are whole or as they were before, whoever writes them and whatever happens meanwhile."""

import errno
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scripts.common.files import atomic, check_writable, watch, write_json
from scripts.common.model_file import save_model
from scripts.inference.writer import AtomicNibabelWriter
from scripts.training.checkpoint import TrainingCheckpoint


def test_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deeper" / "file.nii.gz"
    for content in ("first", "second"):
        with atomic(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent and temporary.name.endswith(path.name)
            assert content == "first" or path.read_text() == "first"  # readers still meet the old one
        assert path.read_text() == content and list(path.parent.iterdir()) == [path]


def test_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("whole")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


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
    validator = SimpleNamespace(state=SimpleNamespace(metrics={"error": 1.0}, key_metric_name="error"))
    checkpoint = TrainingCheckpoint(path, {"network": model}, SimpleNamespace(module=model, state_dict=dict), validator)
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
    with pytest.raises(OSError, match="no space left"):
        write(path, model)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["far/target", "far/gone"])
def test_what_a_link_leads_to_stays_and_the_link_is_kept_beside_the_file(tmp_path, target, capsys):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/target").write_text("before"), (tmp_path / "link").symlink_to(target)
    for content in ({}, {"a": 1}):
        write_json(tmp_path / "link", content)
    assert (tmp_path / "far/target").read_text() == "before" and os.readlink(tmp_path / "link.kept1") == target
    assert not (tmp_path / "link").is_symlink() and json.loads((tmp_path / "link").read_text()) == {"a": 1}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link", "link.kept1", "target"]
    assert capsys.readouterr().out == f"{tmp_path}/link was a symbolic link: it is kept as link.kept1.\n"


def test_a_folder_may_be_a_link(tmp_path):
    (tmp_path / "far").mkdir(), (tmp_path / "out").symlink_to("far")
    write_json(tmp_path / "out/a.json", {})
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "far") == ["a.json"]


def test_folder_of_a_home_that_nothing_replaces_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"the output folder ~/out, whose ~ is not replaced: write \$HOME in its place"):
        check_writable("~/out")
    assert not any(tmp_path.iterdir())


def written_by(path, text):
    with atomic(path) as temporary:
        temporary.write_text(text)


def test_what_comes_into_the_place_of_an_output_while_a_run_works_is_not_replaced(tmp_path):
    there, later = tmp_path / "there.csv", tmp_path / "later.csv"
    there.write_text("ours")
    watch([there, later])
    written_by(there, "new")
    written_by(there, "newer")  # of this very run
    assert there.read_text() == "newer"
    for path in (there, later):
        path.write_text("a person's")
        with pytest.raises(ValueError, match=f"{path.name} came or changed while this run worked"):
            written_by(path, "ours")
        assert path.read_text() == "a person's"
    later.unlink(), later.symlink_to(there)
    with pytest.raises(ValueError, match="later.csv came or changed while this run worked"):
        written_by(later, "ours")
    assert later.is_symlink() and there.read_text() == "a person's"
    later.unlink()
    watch([there])
    there.unlink()
    written_by(there, "ours")
    assert there.read_text() == "ours" and not list(tmp_path.glob(".*"))


def test_what_an_interrupted_run_left_is_kept_beside_what_replaces_it(tmp_path):
    mask, inside = tmp_path / "mask.nii.gz", tmp_path / "scans" / "a.nii.gz"
    inside.parent.mkdir()
    for text in ("first", "second"):
        mask.write_text(text)
        inside.write_text(text)
        watch([mask, inside.parent], unsure=[mask, inside.parent])
        for path in (mask, inside):
            written_by(path, "new")
            written_by(path, "newer")
    for path in (mask, inside):
        assert path.read_text() == "newer"
        assert path.with_name(f"{path.name}.kept1").read_text() == "first"
        assert path.with_name(f"{path.name}.kept2").read_text() == "second"
    assert len(list(tmp_path.rglob("*.*"))) == 6
