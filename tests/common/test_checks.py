"""What users of the command line read when an option or its value is wrong."""

from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import files_of
from monai.bundle import ConfigParser
from scripts.common.checks import RULES, check_command_line, check_settings

CONTENT = {
    "_desc_": "a config",
    "_unused_": "split, label",
    "slice_range": [70, 90],
    "modalities": ["flair"],
    "iterations": 100,
    "max_iterations": 100,
    "image": None,
    "split": None,
    "network_def": {"_target_": "Net", "channels": 4, "options": {"dropout": 0.1}, "blocks": [{"_target_": "B"}]},
    "run": ["$1"],
    "training": "%run",
}


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.common.checks.report_errors", lambda: None)
    (tmp_path / "base.json").write_text(json.dumps(CONTENT))
    (tmp_path / "override.json").write_text(json.dumps({"seed": 1, "network_def#channels": 8}))
    return str(tmp_path / "base.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--slice_range", "[2, 9]"],
        ["--slice_range=[2,9]", "-image", "x.nii"],
        ["--slice-range", "$None"],
        ["--modalities", "['t1']", "--iterations", "-3"],
        ["--network_def#channels", "8", "--network_def::channels", "8"],
        ["--network_def::dropout", "0.2", "--network_def#dropout", "0.2"],
        ["--network_def#blocks#0#size", "0.2", "--network_def#options#dropout=0.2", "--slice_range#0", "5"],
        [
            "--run_id",
            "run",
            "--meta_file",
            "m.json",
            "--logging_file",
            "l",
            "--init_id",
            "i",
            "--workflow_type",
            "train",
        ],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("form", [["--config_file", "{}"], ["--config_file={}"], ["--config_file", "['{}']"]])
def test_options_of_the_config_and_of_monai_are_accepted(config_file, form, arguments):
    check_command_line(["run", "training", *(part.format(config_file) for part in form), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice_rnge", "[2, 9]"], "The config has no option --slice_rnge: did you mean --slice_range?"),
        (["--slice_rnge=[2, 9]"], "did you mean --slice_range?"),
        (["-slice_rnge", "[2, 9]"], "did you mean --slice_range?"),
        (["--modality", "['t1']"], "did you mean --modalities?"),
        (["--max_passes", "3"], "no option --max_passes: did you mean --max_iterations?"),
        (["--max_epoch", "3"], "--max_epoch: see the options at the top of the config file"),
        (["--iteration", "3", "--slice_range", "[1,2]"], "did you mean --iterations?"),
        (["--iterations#x", "3"], "no option --iterations#x"),
        (["--training#x", "3"], "no option --training#x"),
        (["--slice_range#5", "5"], "no option --slice_range#5"),
        (["--network_def#options#drop", "0.2"], "no option --network_def#options#drop"),
        (["--netwrk_def#channels", "0.2"], "no option --netwrk_def#channels"),
        (["--override", "{}"], "no option --override"),
        (["--iterations", "true"], "write --iterations True"),
        (["--iterations=false"], "write --iterations False"),
        (["--slice_range", "null"], r"--slice_range null would be read as a text, or not at all: .* '\$None'"),
        (["--slice_range", "None"], r"write --slice_range '\$None'"),
        (["--split", "a.txt"], "--split changes nothing with this config"),
        (["--iterations=3", "slice_range", "2"], "'slice_range' belongs to no option"),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_what_monai_would_ignore_or_misread_is_refused(config_file, arguments, message):
    for command in (["--config_file", config_file, *arguments], [*arguments, "--config_file", config_file]):
        with pytest.raises(ValueError, match=message):
            check_command_line(["run", "training", *command])


@pytest.mark.parametrize("files", ["['{0}', '{1}']", "('{0}','{1}')", "{0},{1}"])
def test_options_of_all_config_files_are_known(config_file, files):
    arguments = ["run", "--config_file", files.format(config_file, config_file.replace("base", "override"))]
    check_command_line([*arguments, "--seed", "3", "--iterations", "2"])
    with pytest.raises(ValueError, match="did you mean --seed?"):
        check_command_line([*arguments, "--sed", "3"])


def test_options_of_an_args_file_are_checked_too(config_file, tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"config_file": [config_file], "image": None, "slice_rnge": [1, 2]}))
    with pytest.raises(ValueError, match="did you mean --slice_range?"):
        check_command_line(["run", "--args_file", str(tmp_path / "args.json")])


def test_command_line_of_another_program_is_left_alone(config_file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/pytest", "--config_file", config_file, "--slice_rnge", "3"])
    check_command_line()
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *sys.argv[1:]])
    with pytest.raises(ValueError, match="did you mean --slice_range?"):
        check_command_line()


@pytest.mark.parametrize("name", ["train", "inference", "evaluate"])
def test_config_checks_every_plain_option_and_its_own_values_pass(name):
    content = ConfigParser.load_config_files(files_of(name))
    plain = {key: value for key, value in content.items() if key[0] != "_" and not _is_worked_out(value)}
    checked = {key for check in content["checks"] for key in check if key[0] != "_"}
    assert plain.keys() - checked <= {"imports", "backbone", "healthy_cases", "doubt_weight", "source_fractions"}
    check_settings(**{key: value for key, value in plain.items() if key in checked})


@pytest.mark.parametrize("name", ["train", "inference", "evaluate"])
def test_every_plain_option_is_used_beyond_its_check(name):
    content = ConfigParser.load_config_files(files_of(name))
    plain = {key for key, value in content.items() if key[0] != "_" and not _is_worked_out(value)}
    used = json.dumps({key: value for key, value in content.items() if key not in ("checks", "settings")})
    assert {key for key in plain - {"imports"} if not re.search(rf"@{key}\b", used)} == set()


def _is_worked_out(value):
    return any(sign in json.dumps(value) for sign in ("_target_", "@", "$", "%"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"iterations": True}, "`iterations` must be a whole number from 1 to 1000000000, got True."),
        ({"sigma": float("nan")}, "`sigma` must be a number from 0 to 10000, got nan."),
        ({"lesion_fraction": 10}, "`lesion_fraction` must be in [0, 1], got 10; did you pass a percentage?"),
        ({"dataset_dir": 2024}, "write ./NAME for a folder"),
        ({"modalities": "flair"}, "`modalities` must be a list of names such as ['flair'], or null, got 'flair'."),
        ({"device": "toaster"}, "`device` must be one that PyTorch can use here"),
        ({"output_dir": "x" * 5000}, "..."),
        ({"output_dir": "~/out"}, "got '~/out'; write $HOME in place of ~, which the shell leaves as it is"),
        ({"image": ["/a.nii", "~me/b.nii"]}, "write $HOME in place of ~"),
    ],
)
def test_message_says_what_a_value_must_be(setting, message):
    with pytest.raises(ValueError) as refusal:
        check_settings(**setting)
    assert message in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("lesion_fraction", (0, 0.5, 1, 1.0), (-0.001, 1.001, True, None, "1")),
        ("false_positive_rate", (1e-9, 0.999), (0, 1, 0.0, 1.0)),
        ("threshold_scale", (1e-9, 1000), (0, 1000.1, float("nan"))),
        ("largest_gradient_norm", (1e-9, float("inf")), (0, float("nan"))),
        ("image_size", (1, 4096), (0, 4097, 16.0, True, None)),
        ("seed", (0, 2**32 - 1), (-1, 2**32, "many")),
        ("slice_range", (None, [0, 1], (70, 90)), ([1, 1], [5, 4], [-1, 4], [0.0, 4.0], [1], "70")),
        ("modalities", (["flair"], ("a", "b"), None), ([], "flair", ["a/b"], [".a"], [1], ["../x"])),
        ("exclude", (["a", 7], "list.txt", None), ([], [1.5], ["a\nb"])),
        ("lower_over_volume", (True, False), (0, 1, "True", None)),
        ("precision", ("float32", "auto"), ("half", None)),
        ("subsets", ({}, {"a": "b.txt"}), ({"a/b": "c"}, {"a": 1}, ["a"])),
    ],
)
def test_rules_hold_up_to_their_edges(name, inside, outside):
    assert [value for value in inside if not RULES[name].fits(value)] == []
    assert [value for value in outside if RULES[name].fits(value)] == []
