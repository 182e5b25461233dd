"""Only what this product wrote, by its own records, is replaced."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from conftest import CONFIGS, run_bundle
from scripts.common.errors import innermost_message
from scripts.common.files import write_json
from scripts.common.ownership import (
    PRODUCT,
    check_no_input,
    check_no_link,
    check_not_shipped,
    check_outputs,
    check_replaceable,
    claim,
    is_same_file,
    lock_folder,
    steps_below,
    unlock_folder,
    written,
)


def test_what_is_claimed_before_it_is_written_may_be_replaced(tmp_path):
    claim(tmp_path, "evaluate", ["cases.csv"])
    (tmp_path / "cases.csv").write_text("ours")
    claim(tmp_path, "evaluate", ["cases.csv", "pictures"])
    record = json.loads((tmp_path / "evaluate_record.json").read_text())
    assert record == {"product": PRODUCT, "step": "evaluate", "files": {"cases.csv": None, "pictures": None}}


@pytest.fixture
def tables(tmp_path):
    """A folder with a table and a folder of two pictures, and what writes them."""

    def write(content="ours"):
        with written(tmp_path, "evaluate", ["cases.csv", "pictures"]):
            (tmp_path / "pictures").mkdir(exist_ok=True)
            for name in ("cases.csv", "pictures/a.png", "pictures/b.png"):
                (tmp_path / name).write_text(content)

    write()
    return write


def test_what_is_as_it_was_written_may_be_replaced(tmp_path, tables):
    tables("anew")
    (tmp_path / "cases.csv").write_text(""), (tmp_path / "pictures/a.png").unlink()  # after a power failure
    tables("again")
    assert (tmp_path / "cases.csv").read_text() == (tmp_path / "pictures/a.png").read_text() == "again"


@pytest.mark.parametrize("name", ["cases.csv", "pictures/b.png", "pictures/own.png"])
def test_what_a_person_changed_is_not_replaced(tmp_path, tables, name):
    (tmp_path / name).write_text("by hand")
    with pytest.raises(ValueError, match=rf"{name} was changed since `evaluate` wrote it"):
        tables("anew")
    assert (tmp_path / name).read_text() == "by hand"
    (tmp_path / name).unlink()
    tables("anew")


@pytest.mark.parametrize("name", ["cases.csv", "pictures", "pictures/a.png", "evaluate_record.json"])
def test_what_a_person_moved_away_and_linked_back_is_not_replaced(tmp_path, tables, name):
    far = tmp_path / "far"
    (tmp_path / name).rename(far), (tmp_path / name).symlink_to(far)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"{name} is a symbolic link, and what it leads to is not replaced"):
        tables("anew")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / name).unlink(), far.rename(tmp_path / name)
    tables("anew")


def test_another_name_of_a_file_keeps_what_it_held(tmp_path):
    for content in ({"a": 1}, {"a": 2}):
        with written(tmp_path, "evaluate", ["summary.json"]):
            write_json(tmp_path / "summary.json", content)
        if content["a"] == 1:
            (tmp_path / "far").hardlink_to(tmp_path / "summary.json")
    assert json.loads((tmp_path / "far").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}


def test_links_of_the_way_to_the_output_folder_are_none_of_its_own(tmp_path):
    (tmp_path / "far/deep").mkdir(parents=True), (tmp_path / "out").symlink_to("far")
    below = steps_below(tmp_path / "out", tmp_path / "out/deep/a.csv")
    assert below == [tmp_path / "out/deep", tmp_path / "out/deep/a.csv"]
    assert steps_below(tmp_path / "out", tmp_path / "b.csv") == [tmp_path / "b.csv"]
    check_no_link(below)
    (tmp_path / "far/deep").rename(tmp_path / "deeper"), (tmp_path / "far/deep").symlink_to(tmp_path / "deeper")
    with pytest.raises(ValueError, match=f"{tmp_path}/out/deep is a symbolic link, .* set another `model_file`"):
        check_no_link(below, "model_file")


def test_read_only_file_is_not_replaced(tmp_path, tables):
    (tmp_path / "cases.csv").chmod(0o444)
    with pytest.raises(OSError, match="cases.csv is read-only"):
        tables("anew")


def test_what_a_killed_run_was_writing_may_be_replaced(tmp_path, tables):
    with pytest.raises(KeyboardInterrupt), written(tmp_path, "evaluate", ["cases.csv"]):
        (tmp_path / "cases.csv").write_text("half")
        raise KeyboardInterrupt
    tables("anew")


@pytest.mark.parametrize("name", ["cases.csv", "pictures"])
@pytest.mark.parametrize("digest", ["0" * 64, 5, {}, {"a.png": None}, ["a.png"]])
def test_record_changed_by_hand_lets_no_file_be_replaced_that_is_not_as_it_says(tmp_path, tables, name, digest):
    path = tmp_path / "evaluate_record.json"
    record = json.loads(path.read_text())
    record["files"][name] = digest
    path.write_text(json.dumps(record))
    (tmp_path / "cases.csv").write_text("by hand"), (tmp_path / "pictures/a.png").write_text("by hand")
    with pytest.raises(ValueError, match=f"{name}(/a.png)? was changed since `evaluate` wrote it, or came later"):
        claim(tmp_path, "evaluate", [name])
    assert (tmp_path / "cases.csv").read_text() == (tmp_path / "pictures/a.png").read_text() == "by hand"


@pytest.mark.parametrize("files", [{"cases.csv": None}, ["cases.csv"]])
def test_file_that_a_record_claims_without_saying_what_it_held_is_kept_beside(tmp_path, files):
    (tmp_path / "cases.csv").write_text("by hand")
    record = {"product": PRODUCT, "step": "evaluate", "files": files}
    (tmp_path / "evaluate_record.json").write_text(json.dumps(record))
    with written(tmp_path, "evaluate", ["cases.csv"]):
        write_json(tmp_path / "cases.csv", {})
    assert (tmp_path / "cases.csv.kept1").read_text() == "by hand" and (tmp_path / "cases.csv").read_text() == "{}\n"


@pytest.mark.parametrize("files", [{}, "cases.csv", 5, {"other.csv": "0"}])
def test_record_that_does_not_claim_a_file_lets_it_stay(tmp_path, files):
    (tmp_path / "cases.csv").write_text("by hand")
    record = {"product": PRODUCT, "step": "evaluate", "files": files}
    (tmp_path / "evaluate_record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="cases.csv is in the way, which `evaluate` did not write"):
        claim(tmp_path, "evaluate", ["cases.csv"])


def test_record_of_an_earlier_version_allows_what_it_names(tmp_path):
    for name in ("cases.csv", "curves.csv"):
        (tmp_path / name).touch()
    record = {"product": PRODUCT, "step": "evaluate", "files": ["cases.csv"]}
    (tmp_path / "evaluate_record.json").write_text(json.dumps(record))
    claim(tmp_path, "evaluate", ["cases.csv"])
    with pytest.raises(ValueError, match="curves.csv is in the way"):
        claim(tmp_path, "evaluate", ["curves.csv"])


HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from scripts.common.ownership import lock_folder
lock_folder(sys.argv[2]), lock_folder(sys.argv[2] + "/.")
if os.fork() == 0:
    time.sleep(60)  # a worker that outlives its run
print("locked", flush=True)
sys.stdin.read()
"""


def test_folder_is_one_run_s_until_it_ends_however_it_ends(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", HOLD, str(CONFIGS.parent), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(RuntimeError, match="Another run is writing in"):
                lock_folder(tmp_path)
            lock_folder(tmp_path / "other")
            monkeypatch.setenv("RANK", "1")
            lock_folder(tmp_path)  # the other processes of that run
            monkeypatch.setenv("RANK", "0")
            process.kill(), process.wait()
            for _ in range(50):  # its worker may just be starting
                with suppress(RuntimeError):
                    lock_folder(tmp_path)
                    break
                time.sleep(0.1)
            lock_folder(tmp_path), unlock_folder(tmp_path)
            with subprocess.Popen([*command[:-1], str(tmp_path)], **pipes) as another:
                assert another.stdout.readline() == b"locked\n"
                os.killpg(another.pid, signal.SIGKILL)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_what_was_there_before_is_not_claimed(tmp_path, kind):
    place = tmp_path / "cases.csv"
    {"file": place.touch, "folder": place.mkdir, "link to nothing": lambda: place.symlink_to("nowhere")}[kind]()
    with pytest.raises(ValueError, match="cases.csv is in the way"):
        claim(tmp_path, "evaluate", ["summary.json", "cases.csv"])
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": ["cases.csv"]}'])
def test_record_of_another_is_not_replaced(tmp_path, content):
    (tmp_path / "evaluate_record.json").write_text(content)
    with pytest.raises(ValueError, match="evaluate_record.json is in the way"):
        claim(tmp_path, "evaluate", ["cases.csv"])
    assert (tmp_path / "evaluate_record.json").read_text() == content


def test_files_are_the_same_by_whatever_links(tmp_path):
    (tmp_path / "a").touch(), (tmp_path / "c").touch()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "d").hardlink_to(tmp_path / "a")
    same = {name: is_same_file(tmp_path / "a", tmp_path / "." / name) for name in "abcde"}
    assert same == {"a": True, "b": True, "c": False, "d": True, "e": False}
    for name in "abd":
        with pytest.raises(ValueError, match="is an input of this run and would be replaced"):
            check_no_input([tmp_path / "e", tmp_path / name], [tmp_path / "a", tmp_path / "gone"])
    check_no_input([tmp_path / "c", tmp_path / "e"], [tmp_path / "a", tmp_path / "gone"])


@pytest.mark.parametrize("content", ["text", {"other": torch.ones(1)}, torch.ones(2)])
def test_model_and_checkpoint_of_another_are_not_replaced(tmp_path, content):
    place = tmp_path / "x.pt"
    place.write_text(content) if isinstance(content, str) else torch.save(content, place)
    for option in ("model_file", "checkpoint"):
        with pytest.raises(ValueError, match="x.pt is in the way"):
            check_replaceable(**{option: str(place)})


@pytest.mark.parametrize("name", ["model.pt", "out/checkpoint.pt"])
def test_training_refuses_to_replace_a_file_of_another(two_modality_slices, tmp_path, name):
    (tmp_path / "out").mkdir()
    torch.save({"weights": torch.ones(1)}, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    options = {"output_dir": str(tmp_path / "out"), "model_file": str(tmp_path / "model.pt"), "iterations": 1}
    with pytest.raises(Exception) as error:
        run_bundle("train", **two_modality_slices, **options)
    assert f"{tmp_path / name} is in the way, which training did not write" in innermost_message(error.value)
    assert (tmp_path / name).read_bytes() == before


def test_own_model_and_checkpoint_may_be_replaced(tmp_path):
    check_replaceable(str(tmp_path / "none.pt"), str(tmp_path / "none.pt"))
    torch.save({"threshold": torch.ones(())}, tmp_path / "model.pt")
    torch.save({"trainer": {}, "ema": {}}, tmp_path / "checkpoint.pt")
    check_replaceable(str(tmp_path / "model.pt"), str(tmp_path / "checkpoint.pt"))


@pytest.mark.parametrize("link", [os.symlink, shutil.copyfile, None])
def test_the_model_of_the_bundle_is_not_written_over(tmp_path, link, monkeypatch):
    monkeypatch.setattr("scripts.common.ownership.bundle_root", lambda: str(tmp_path / "bundle"))
    shipped, named = tmp_path / "bundle" / "models" / "model.pt", tmp_path / "mine.pt"
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"weights")
    if link is None:
        named = shipped
    else:
        link(shipped, named)
    if link is shutil.copyfile:
        check_not_shipped(named)
    else:
        with pytest.raises(ValueError, match="is the model of the bundle: copy it"):
            check_not_shipped(named)


@pytest.mark.parametrize("name", ["checkpoint.pt", "training_record.json", "tensorboard"])
def test_a_model_is_not_written_where_its_training_writes_something_else(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}, where this training writes something else"):
        check_outputs(str(tmp_path / name), str(tmp_path / "checkpoint.pt"))
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(ValueError, match="tensorboard is in the way"):
        check_outputs(str(tmp_path / "model.pt"), str(tmp_path / "checkpoint.pt"))
