"""Each module of the bundle has the tests of its name."""

import pytest
from conftest import CONFIGS

SCRIPTS = CONFIGS.parent / "scripts"
MODULES = sorted(path.relative_to(SCRIPTS) for path in SCRIPTS.glob("*/*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_has_tests_of_its_name(module):
    tests = CONFIGS.parents[1] / "tests" / module.parent / f"test_{module.name}"
    assert tests.is_file() and "def test_" in tests.read_text()
