"""Names and lists that others may have written."""

from pathlib import Path

import pytest
from scripts.data.lists import check_case_name, existing_folder, inside, read_json, read_split


@pytest.mark.parametrize(
    "content", ["a\r\nd\r\n", "\ufeffa\r\nd", "a  \nd\t\n\n", "a\rd\r", "# cases\r\na # one\r\n\r\nd\r\n"]
)
def test_split_files_of_every_editor(tmp_path, content):
    (tmp_path / "split.txt").write_bytes(content.encode())
    assert read_split(str(tmp_path / "split.txt")) == ["a", "d"]


@pytest.mark.parametrize("name", ["../up", "/etc", "a/../../b", "."])
def test_name_that_leads_out_of_the_folder_is_refused_unless_it_is_allowed(name):
    with pytest.raises(ValueError, match="list names .*, which is outside"):
        inside(Path("data"), name, "list")
    assert inside(Path("data"), name, "list", allow_outside=True) == Path("data") / name
    assert inside(Path("data"), "a/../b..c", "list") == Path("data/a/../b..c")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "two\nlines", "", 5, None, "x" * 300])
def test_case_name_that_cannot_be_that_of_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="list has the case name .{1,210}: use one line of text"):
        check_case_name(name, "list")
    check_case_name("sub-1_ses-1.b", "list")


def test_file_that_is_missing_or_no_json_is_told_with_what_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="No file .*: give a datalist"):
        read_json(tmp_path / "a.json", "a datalist")
    for content in ("{", "[" * 100_000):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match="is no JSON .*: give a datalist"):
            read_json(tmp_path / "a.json", "a datalist")


def test_folder_that_is_none_is_told(tmp_path):
    assert existing_folder(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="No folder .*none: set `dataset_dir`"):
        existing_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="must be one folder here, got \\['a'\\]"):
        existing_folder(["a"])


def test_split_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="No split file .*gone.txt"):
        read_split(str(tmp_path / "gone.txt"))
    for content in (b"\x00\x81\xff\xfe", b"\xff\xfe\x00\x81\x00"):
        (tmp_path / "binary.txt").write_bytes(content)
        with pytest.raises(ValueError, match="binary.txt is no text file"):
            read_split(str(tmp_path / "binary.txt"))


def test_name_that_stands_twice_in_a_split_is_told():
    assert read_split(["b", 7, "a"]) == ["b", "7", "a"]
    with pytest.raises(ValueError, match="The split names b twice"):
        read_split(["a", "b", "c", "b"])
