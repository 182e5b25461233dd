"""Where the bundle lies, and which files a config is made of."""

from pathlib import Path

from scripts.common.paths import bundle_root, config_files

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"


def test_root_is_the_bundle_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(bundle_root()) == BUNDLE


def test_config_without_a_base_is_its_own_file():
    assert config_files("inference") == [BUNDLE / "configs" / "inference.json"]


def test_base_comes_first_and_overlays_last(tmp_path):
    own = tmp_path / "own.json"
    names = [path.name for path in config_files("evaluate_slices", "paper", own)]
    assert names == ["inference.json", "evaluate.json", "evaluate_slices.json", "paper.json", "own.json"]
