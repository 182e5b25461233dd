"""The documentation: its lists of options agree with the configs, and its links lead somewhere."""

import json
import re

import pytest
from conftest import CONFIGS
from scripts.common.checks import RULES

ROOT = CONFIGS.parents[1]
PAGES = [ROOT / "README.md", *sorted((CONFIGS.parent / "docs").glob("*.md"))]
EXTEND = (CONFIGS.parent / "docs" / "extend.md").read_text()
LISTS = dict(re.findall(r"^### [^\n]*: `(\w+)\.json`\n(.*?)(?=^##)", EXTEND, re.MULTILINE | re.DOTALL))


def options_of(name):
    """The options of a config with their defaults as text."""
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    return {key: json.dumps(value) for key, value in content.items() if key in RULES and key != "bundle_root"}


@pytest.mark.parametrize("name", LISTS)
def test_list_of_options_has_all_that_may_be_set_with_its_default(name):
    rows = re.findall(r"^\* `(\w+)` \((?:`(.*?)`|(computed))\): (.+)$", LISTS[name], re.MULTILINE)
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    base = content.get("_base_", "")
    expected = options_of(name)
    if "train.json" in base:  # calibrate.json takes what describes the model from its file
        expected = {key: value for key, value in expected.items() if "@network_def" not in value}
    if name == "paper":  # a sentence tells the published values
        expected = {key: value for key, value in expected.items() if key not in options_of("train")}
    if name == "train":
        expected = {key: value for key, value in expected.items() if options_of("inference").get(key) != value}
    computed = {key for key, text in expected.items() if any(sign in text for sign in ("$", "@", "_target_"))}
    found = {option: default for option, default, _, _ in rows}
    assert len(found) == len(rows) > 2 and found.keys() <= content.keys()
    for option, text in expected.items():
        assert found.get(option) == ("" if option in computed else text), option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, part in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        if part:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert part in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, part


def test_pages_name_configs_and_options_that_exist():
    options = {key for path in CONFIGS.glob("*.json") for key in json.loads(path.read_text())}
    for page in PAGES:
        commands = re.findall(r"monai\.bundle run (?:.*\\\n)*.*", page.read_text())
        for command in commands:
            for option in re.findall(r"--([a-z_]+)(?:#| )", command):
                assert option in options | {"config_file"}, f"{page.name}: --{option}"
            for config in re.findall(r"configs/(\w+\.json)", command):
                assert (CONFIGS / config).is_file(), config
