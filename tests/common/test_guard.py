"""What users of the command line read when something is wrong."""

import json
import logging
import sys

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.common.guard import (
    _is_no_engine_error,
    check_overrides,
    innermost_message,
    report_errors,
    trained_model_file,
)
from torch._utils import ExceptionWrapper  # what DataLoader hands an error of a worker over with
from tqdm import tqdm


def chained(*errors, suppressed=False):
    """An error raised from another, and so on; the first is the innermost."""
    try:
        if len(errors) == 1:
            raise errors[0]
        try:
            raise chained(*errors[:-1], suppressed=suppressed)
        except Exception as inner:
            raise errors[-1] from (None if suppressed else inner)
    except Exception as outer:
        return outer


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, FileNotFoundError])
def test_sentence_of_the_first_error_of_a_chain(kind):
    error = chained(kind("Expected this."), RuntimeError("applying transform"), RuntimeError("Failed to instantiate"))
    assert innermost_message(error) == "Expected this."


def test_suppressed_errors_are_no_cause():
    assert (
        innermost_message(chained(KeyError("x"), ValueError("Expected\n  this."), suppressed=True)) == "Expected this."
    )


def test_error_while_handling_another_leads_to_the_first():
    try:
        try:
            raise ValueError("First.")
        except ValueError:
            raise RuntimeError("Second.")  # noqa: B904
    except RuntimeError as error:
        assert innermost_message(error) == "First."


@pytest.mark.parametrize(
    ("error", "message"), [(KeyError("x"), "KeyError: 'x'"), (ZeroDivisionError(), "ZeroDivisionError:")]
)
def test_errors_that_are_no_sentence_keep_their_kind(error, message):
    assert innermost_message(error).strip() == message


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([ValueError("one: Expected this.")], "one: Expected this."),
        ([ValueError("Expected this."), RuntimeError("applying transform: Compose")], "Expected this."),
        ([KeyError("x"), RuntimeError("applying transform")], "KeyError: 'x'"),
        ([AssertionError()], "AssertionError:"),
        ([StopAsyncIteration("x")], "StopAsyncIteration: x"),
        ([json.JSONDecodeError("no", "doc", 0)], "json.decoder.JSONDecodeError: no: line 1 column 1 (char 0)"),
    ],
)
def test_error_of_a_worker_is_its_innermost_sentence(errors, message):
    error = chained(*errors)
    sent = ExceptionWrapper((type(error), error, error.__traceback__), where="in DataLoader worker process 0")
    with pytest.raises(Exception) as caught:
        sent.reraise()
    assert innermost_message(caught.value).strip() == message


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("ITERMASK_TRACEBACK", raising=False)
    report_errors()
    return sys.excepthook


def test_uncaught_error_is_one_line(hook, capsys):
    error = chained(ValueError("Expected\nthis."), RuntimeError("wrapped"))
    hook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: Expected this. (ITERMASK_TRACEBACK=1 shows where)\n"
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted: run the same command again to go on.\n"


def test_traceback_on_request(hook, capsys, monkeypatch):
    monkeypatch.setenv("ITERMASK_TRACEBACK", "1")
    error = chained(ValueError("Expected this."))
    hook(type(error), error, error.__traceback__)
    assert "Traceback (most recent call last)" in (printed := capsys.readouterr().err) and "Expected this." in printed


@pytest.fixture
def config_file(tmp_path):
    content = {
        "_desc_": "a config",
        "slice_range": [70, 90],
        "modalities": ["flair"],
        "iterations": 100,
        "image": None,
        "network_def": {"_target_": "Net", "channels": 4, "options": {"dropout": 0.1}, "blocks": [{"_target_": "B"}]},
        "run": ["$1"],
        "training": "%run",
    }
    (tmp_path / "base.json").write_text(json.dumps(content))
    (tmp_path / "overlay.json").write_text(json.dumps({"seed": 1, "network_def#channels": 8}))
    return str(tmp_path / "base.json")


ACCEPTED = [
    ["--slice_range", "[2, 9]"],
    ["--slice_range=[2,9]"],
    ["--slice-range", "[2,9]"],
    ["-slice_range", "[2,9]"],
    ["--modalities", "['t1']", "--iterations", "-3"],
    ["--image", "x.nii"],
    ["--network_def#channels", "8"],
    ["--network_def::channels", "8"],
    ["--network_def::dropout", "0.2"],
    ["--network_def#dropout", "0.2"],
    ["--network_def#blocks#0#size", "0.2"],
    ["--network_def#options#dropout=0.2"],
    ["--slice_range#0", "5"],
    ["--run_id", "run", "--meta_file", "m.json", "--logging_file", "l", "--init_id", "i", "--args_file", "a"],
]
REFUSED = [
    (["--slice_rnge", "[2, 9]"], "--slice_rnge names no id of .*base.json: did you mean --slice_range?"),
    (["--slice_rnge=[2, 9]"], "did you mean --slice_range?"),
    (["-slice_rnge", "[2, 9]"], "did you mean --slice_range?"),
    (["--modality", "['t1']"], "did you mean --modalities?"),
    (["--max_epoch", "3"], "--max_epoch names no id of .*: see the ids at the top of the config file"),
    (["--iteration", "3", "--slice_range", "[1,2]"], "did you mean --iterations?"),
    (["--iterations#x", "3"], "--iterations#x names no id"),
    (["--training#x", "3"], "--training#x names no id"),
    (["--image#x", "3"], "--image#x names no id"),
    (["--slice_range#5", "5"], "--slice_range#5 names no id"),
    (["--network_def#options#drop", "0.2"], "--network_def#options#drop names no id"),
    (["--netwrk_def#channels", "0.2"], "--netwrk_def#channels names no id"),
    (["--override", "{}"], "--override names no id"),
    (["--iterations", "true"], "write --iterations True"),
    (["--iterations=false"], "write --iterations False"),
]


@pytest.mark.parametrize("arguments", ACCEPTED, ids=" ".join)
@pytest.mark.parametrize("form", [["--config_file", "{}"], ["--config_file={}"], ["--config_file", "['{}']"]])
def test_overrides_of_known_ids(config_file, form, arguments):
    check_overrides(["run", "training", *(part.format(config_file) for part in form), *arguments])


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: value[0] if value else "")
def test_overrides_of_unknown_ids(config_file, arguments, message):
    for command in (["--config_file", config_file, *arguments], [*arguments, "--config_file", config_file]):
        with pytest.raises(ValueError, match=message):
            check_overrides(["run", "training", *command])


@pytest.mark.parametrize("files", ["['{0}', '{1}']", "('{0}','{1}')", "{0},{1}"])
def test_ids_of_all_config_files_are_known(config_file, files):
    overlay = config_file.replace("base", "overlay")
    arguments = ["run", "--config_file", files.format(config_file, overlay)]
    check_overrides([*arguments, "--seed", "3", "--iterations", "2"])
    with pytest.raises(ValueError, match="did you mean --seed?"):
        check_overrides([*arguments, "--sed", "3"])
    with pytest.raises(ValueError, match="'iterations' belongs to no id"):
        check_overrides(["run", "training", *arguments[1:], "--seed=3", "iterations", "2"])
    with pytest.raises(ValueError, match="--seed names no id"):
        check_overrides(["run", "--config_file", config_file, "--seed", "3"])


@pytest.mark.parametrize("word", ["null", "None", "NULL"])
def test_null_is_null_for_every_id(tmp_path, monkeypatch, word):
    content = {"run": [{"_target_": "scripts.common.guard.guard"}, "@seen"], "seen": {"a": "@a", "b": "@b", "c": "@c"}}
    (tmp_path / "c.json").write_text(json.dumps({"a": [70, 90], "b": "$1 + 1", "c": {"d": 1}, **content}))
    given = {"a": word, "b": word, "c": word} if word != "None" else {}  # MONAI drops an id that is given as None
    arguments = [part for name in "abc" for part in (f"--{name}", word)]
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--config_file", "x", *arguments])
    monkeypatch.setattr("scripts.common.guard.check_overrides", lambda: None)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    workflow = ConfigWorkflow(str(tmp_path / "c.json"), logging_file=False, **given)
    workflow.initialize()
    assert workflow.run()[1] == {"a": None, "b": None, "c": None}


def test_engine_adds_no_line_to_an_error(hook, monkeypatch):
    record = logging.LogRecord("ignite.engine", logging.ERROR, "", 0, "Engine run is terminating due to", None, None)
    kept = logging.LogRecord("scripts.x", logging.ERROR, "", 0, "x is terminating due to exception: y", None, None)
    record.msg += " exception: <object at 0x7f>"
    assert not _is_no_engine_error(record) and _is_no_engine_error(kept)


def test_error_begins_a_line_after_a_progress_bar(hook, capsys):
    bar = tqdm(total=3)
    bar.update()
    hook(ValueError, ValueError("Expected this."), None)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[-1] == "error: Expected this. (ITERMASK_TRACEBACK=1 shows where)"


def test_other_commands_are_left_alone(config_file, monkeypatch):
    check_overrides(["run", "--slice_rnge", "3"])  # no config file to hold it against
    monkeypatch.setattr(sys, "argv", ["/bin/pytest", "--config_file", config_file, "--slice_rnge", "3"])
    check_overrides()
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *sys.argv[1:]])
    with pytest.raises(ValueError, match="did you mean --slice_range?"):
        check_overrides()


@pytest.mark.parametrize(
    "data", ["@slices", [{"image": "scan.nii.gz", "label": "lesion.nii.gz"}]], ids=["own", "label"]
)
def test_training_writes_its_model_beside_the_checkpoint_unless_a_server_trains(data):
    """MONAI Label replaces `train#dataset#data` by a list, and reads the model of the bundle's folder."""
    content = {"output_dir": "RUN", "bundle_root": "BUNDLE", "slices": [], "train": {"dataset": {"data": data}}}
    content["model_file"] = {"_target_": "scripts.common.guard.trained_model_file"}
    content["model_file"] |= {"output_dir": "@output_dir", "bundle_root": "@bundle_root"}
    expected = "RUN/model.pt" if data == "@slices" else "BUNDLE/models/model.pt"
    assert ConfigParser(content).get_parsed_content("model_file") == expected
    assert trained_model_file("RUN", "BUNDLE") == "RUN/model.pt"
