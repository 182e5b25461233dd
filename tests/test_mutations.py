"""The check with faults measures what it says: ``python tests/mutations.py`` runs all of them."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mutations
import pytest
from mutations import FAULTS, Fault


@pytest.fixture(scope="module")
def short_folder():
    """A folder of a short name: that of a socket in it must not exceed 107 characters."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def temporary(short_folder, monkeypatch):
    """The folder that copies of the repository go to, and are gone from afterwards."""
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield short_folder
    assert not list(short_folder.glob("mutation_*"))


def test_every_fault_fits_the_code_and_names_its_tests():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    for fault in FAULTS:
        assert mutations.stale(fault) == ""
        source = mutations.source_of(fault)
        changed = source.read_text().replace(fault.old, fault.new)
        assert changed != source.read_text()
        compile(changed, str(source), "exec")
        for test in mutations.selection([fault]):
            path, _, name = test.partition("::")
            assert re.search(rf"^(def|class) {name}\b" if name else "", (mutations.ROOT / path).read_text(), re.M)


NOTICED = Fault("radius", "frequency", ".sqrt() < radius", ".sqrt() <= radius - 1", "frequency")
UNNOTICED = Fault("rank", "masks", "(1 - fraction) * (count - 1)", "(1 - fraction) * count", "frequency")


def test_fault_that_a_test_notices_counts_and_one_that_none_does_is_named(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "FAULTS", [NOTICED, UNNOTICED])
    assert mutations.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Without any fault all tests pass")
    assert (
        lines[1].split()[:2] == ["frequency", "radius"] and "test_frequency.py::test_equals_an_independent" in lines[1]
    )
    assert lines[2].split()[:2] == ["masks", "rank"] and lines[2].endswith("SURVIVED")
    assert lines[3] == "1 of 2 faults were noticed: 50.0%" and lines[4].startswith("Missed: rank (")


def test_nothing_is_measured_where_a_test_fails_without_any_fault(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "FAULTS", [NOTICED._replace(tests="frequency::test_that_is_not_there")])
    assert mutations.main([]) == 2
    assert "Nothing was measured" in capsys.readouterr().out


def test_entry_whose_text_is_gone_is_to_be_updated(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "FAULTS", [NOTICED._replace(old="no such text")])
    assert mutations.main([]) == 2
    message = "radius: 'no such text' occurs 0 times in frequency.py, expected once: update the entry."
    assert message in capsys.readouterr().out
    with pytest.raises(SystemExit):
        mutations.main(["--only", "raduis"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_check_leaves_nothing_behind(number, temporary):
    command = [sys.executable, str(Path(mutations.__file__)), "--only", "radius-inclusive"]
    before = set(temporary.iterdir())
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    while not list(temporary.glob("mutation_*/output.txt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.strip() == "interrupted: nothing is left behind."
    assert set(temporary.iterdir()) == before
