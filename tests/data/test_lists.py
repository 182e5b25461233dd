"""Names and lists that others may have written."""

from pathlib import Path

import pytest
from scripts.data.lists import inside, read_split


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
