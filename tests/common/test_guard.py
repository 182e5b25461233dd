"""What users of the command line read when something is wrong."""

import json
import sys

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from scripts.common.guard import (
    check_export,
    check_overrides,
    trained_model_file,
)


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


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (["ckpt_export"], "models/model.ts"),
        (["trt_export", "--net_id", "network_def"], "models/model_trt.ts"),
        (["onnx_export"], "models/model.onnx"),
        (["ckpt_export", "--filepath=mine"], "mine.ts"),
        (["ckpt_export", "--filepath", "scan.nii.gz"], "scan.nii.gz"),
    ],
)
def test_export_of_monai_writes_over_no_file(tmp_path, monkeypatch, command, path):
    monkeypatch.chdir(tmp_path), monkeypatch.setattr("scripts.common.guard.report_errors", lambda: None)
    monkeypatch.setattr(sys, "argv", ["/monai/bundle/__main__.py", *command])
    (tmp_path / "models").mkdir()
    check_export()
    (tmp_path / path).touch()
    with pytest.raises(ValueError, match=f"{path} is there already: move it, or name a new file with --filepath"):
        check_export()
    monkeypatch.setattr(sys, "argv", ["pytest", *command])
    check_export()
