"""The zip of a release, and the folder of its Hugging Face repository."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import CONFIGS
from scripts.tools.release import NAME, main, make_hugging_face, make_release

BUNDLE = CONFIGS.parent
METADATA = json.loads((CONFIGS / "metadata.json").read_text())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The zip of the bundle."""
    return make_release(BUNDLE, tmp_path_factory.mktemp("dist"))


def test_same_files_give_the_same_bytes(release, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLE, copy)
    for path in sorted(copy.rglob("*")):
        os.utime(path, (1e9, 1e9))
    (copy / "scripts" / "left_over.pyc").touch()
    (copy / "models" / ".12.partial.model.pt").touch()
    assert make_release(copy, tmp_path / "again").read_bytes() == release.read_bytes()
    main(["--output_dir", str(tmp_path / "dist")])
    digest, path = capsys.readouterr().out.split()
    assert digest == hashlib.sha256(release.read_bytes()).hexdigest() and Path(path).name == release.name


def test_zip_holds_one_folder_with_all_that_is_needed_and_nothing_else(release):
    with zipfile.ZipFile(release) as archive:
        names = archive.namelist()
    assert release.name == f"{NAME}_v{METADATA['version']}.zip" and names == sorted(names)
    assert {name.split("/")[0] for name in names} == {NAME}
    tracked = {path.relative_to(BUNDLE).as_posix() for path in BUNDLE.rglob("*") if path.is_file()}
    tracked = {name for name in tracked if "__pycache__" not in name and "/." not in f"/{name}"}
    tools = {name for name in tracked if name.startswith("scripts/tools/")}
    assert tools and {name.partition("/")[2] for name in names} == tracked - tools


def test_release_without_weights_is_refused(tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "bundle", ignore=shutil.ignore_patterns("model.pt"))
    with pytest.raises(FileNotFoundError, match="needs models/model.pt"):
        make_release(tmp_path / "bundle", tmp_path / "dist")
    assert not list(tmp_path.glob("dist/*"))


def test_folder_for_hugging_face_has_what_the_zoo_lists_and_all_its_links_lead_somewhere(tmp_path):
    url = "https://huggingface.co/someone/brain"
    folder = make_hugging_face(BUNDLE, tmp_path, url)
    assert json.loads((folder / "metadata.json").read_text()) == {**METADATA, "huggingface_url": url}
    assert (folder / "LICENSE").is_file() and (folder / "README.md").read_text().startswith("---\nlicense: mit\n")
    links = 0
    for page in (folder / "README.md", *folder.glob("docs/*.md")):
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
            links += 1
    assert links > 10 and not (folder / "scripts" / "tools").exists()
    with pytest.raises(ValueError, match="--huggingface_url must be https://huggingface.co/OWNER/NAME, got hf.co"):
        make_hugging_face(BUNDLE, tmp_path, "hf.co")
