"""What each id of the configs may be."""

from __future__ import annotations

import json

import pytest
from conftest import files_of
from hostile import outcome
from monai.bundle import ConfigParser
from scripts.common.settings import RULES, check_complete, check_settings, needed_ids


@pytest.mark.parametrize("name", ["train", "preprocess", "inference", "evaluate", "evaluate_slices"])
def test_every_plain_id_at_the_top_has_a_rule_that_its_own_value_meets(name):
    content = ConfigParser.load_config_files(files_of(name))
    plain = {key: value for key, value in content.items() if key[0] != "_" and not _is_worked_out(value)}
    assert plain.keys() - RULES.keys() <= {"imports", "mask_keys", "outputs", "postprocessing", "backbone"}
    check_settings(**{key: value for key, value in plain.items() if key in RULES})


def _is_worked_out(value):
    return any(sign in json.dumps(value) for sign in ("_target_", "@", "$", "%"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"iterations": True}, "`iterations` must be a whole number from 1 to 1000000000, got True."),
        ({"iterations": "many"}, "`iterations` must be a whole number"),
        ({"seed": -1}, "`seed` must be a whole number from 0 to 4294967295, got -1."),
        ({"sigma": float("nan")}, "`sigma` must be a number from 0 to 100, or null, got nan."),
        ({"stop_shrink": 10}, "`stop_shrink` must be in [0, 1], got 10; did you pass a percentage?"),
        ({"dataset_dir": 2024}, "write ./NAME for a folder"),
        ({"modalities": "flair"}, "`modalities` must be a list of names such as ['flair'], or null, got 'flair'."),
        ({"modalities": ["../x"]}, "`modalities` must be a list of names"),
        ({"device": "toaster"}, "`device` must be one that PyTorch can use here"),
        ({"sign": "dark"}, "`sign` must be bright or both, or null, got 'dark'."),
        ({"output_dir": "x" * 5000}, "..."),
        ({"output_dir": "~/out"}, "got '~/out'; write $HOME in place of ~, which the shell leaves as it is"),
        ({"image": ["/a.nii", "~me/b.nii"]}, "write $HOME in place of ~"),
        ({"certain_fraction": 0.1, "exceed_fraction": 0.02, "first_fraction": 0.2}, "set them in this order"),
    ],
)
def test_values_that_no_id_can_have(setting, message):
    _, refusal = outcome(check_settings, **setting)
    assert message in refusal and len(refusal) < 500


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("stop_shrink", (0, 0.5, 1, 1.0), (-0.001, 1.001, True, None, "1")),
        ("first_fraction", (1e-9, 0.999), (0, 1, 0.0, 1.0)),
        ("threshold_rule", ("prior", "slope"), ("Slope", "", None, 1, ["slope"])),
        ("threshold_scale", (1e-9, 1000), (0, 1000.1, float("nan"))),
        ("image_size", (1, 2048, None), (0, 2049, 16.0, True)),
        ("batch_size", (1, 4096), (0, 4097, None)),
        ("slice_range", (None, [0, 1], (70, 90)), ([1, 1], [5, 4], [-1, 4], [0.0, 4.0], [1], "70")),
        ("noise_range", ([0, 0], [0.5, 100]), ([2, 1], [-1, 1], [0, 101], [1])),
        ("modalities", (["flair"], ("a", "b"), None), ([], "flair", ["a/b"], [".a"], [1])),
        ("exclude", (["a", 7], "list.txt", None), ([], [1.5], ["a\nb"])),
        ("lower_over_volume", (True, False, None), (0, 1, "True")),
        ("precision", ("float32", "auto"), ("half", None)),
        ("subsets", ({}, {"a": "b.txt"}), ({"a/b": "c"}, {"a": 1}, ["a"])),
    ],
)
def test_rules_hold_up_to_their_edges(name, inside, outside):
    assert [value for value in inside if not RULES[name].fits(value)] == []
    assert [value for value in outside if RULES[name].fits(value)] == []


def resolver(**config):
    parser = ConfigParser(config)
    parser.parse()
    return parser.ref_resolver


def test_needed_ids_are_those_that_a_run_leads_to():
    found = needed_ids(resolver(run="$@first + @second", first="@third", second=2, third=3, other="@first"), "run")
    assert found == {"run", "first", "second", "third"}


def test_config_that_refers_to_nothing_names_it_and_the_file_that_has_it():
    with pytest.raises(ValueError, match="no `network#size`"):
        check_complete(resolver(_base_="a.json, b.json", run="@network#size"), "run")
    check_complete(resolver(run="@network", network=1, broken="@nothing"), "run")
