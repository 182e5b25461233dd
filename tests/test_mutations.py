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

NOTICED = Fault("radius", "frequency", ".sqrt() < radius", ".sqrt() <= radius - 1", "frequency")
UNNOTICED = Fault("rank", "masks", "(1 - fraction) * (count - 1)", "(1 - fraction) * count", "frequency")


@pytest.fixture
def temporary(monkeypatch):
    """The folder that copies of the repository go to, empty afterwards; of a short name, as it holds a socket."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert not os.listdir(folder)


def check(*faults):
    """Run the check with other faults; gives the exit code and the lines that it prints."""
    code = f"import mutations, sys; from mutations import Fault; mutations.FAULTS[:] = {list(faults)}"
    command = [sys.executable, "-c", f"{code}; sys.exit(mutations.main([]))"]
    result = subprocess.run(command, cwd=Path(mutations.__file__).parent, capture_output=True, text=True, timeout=300)
    assert not result.stderr
    return result.returncode, result.stdout.splitlines()


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


def test_fault_that_a_test_notices_counts_and_one_that_none_does_is_named(temporary):
    code, lines = check(NOTICED, UNNOTICED)
    assert code == 1 and lines[0].startswith("Without any fault all tests pass")
    assert (
        lines[1].split()[:2] == ["frequency", "radius"] and "test_frequency.py::test_equals_an_independent" in lines[1]
    )
    assert lines[2].split()[:2] == ["masks", "rank"] and lines[2].endswith("SURVIVED")
    assert lines[3] == "1 of 2 faults were noticed: 50.0%" and lines[4].startswith("Missed: rank (")


def test_nothing_is_measured_where_a_test_fails_without_any_fault(temporary):
    code, lines = check(NOTICED._replace(tests="frequency::test_that_is_not_there"))
    assert code == 2 and lines[-1].startswith("Nothing was measured")


def test_entry_whose_text_is_gone_is_to_be_updated(monkeypatch, capsys):
    monkeypatch.setattr(mutations, "FAULTS", [NOTICED._replace(old="no such text")])
    assert mutations.main([]) == 2
    message = "radius: 'no such text' occurs 0 times in frequency.py, expected once: update the entry."
    assert message in capsys.readouterr().out
    with pytest.raises(SystemExit):
        mutations.main(["--only", "raduis"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_check_leaves_nothing_behind(number, temporary):
    command = [sys.executable, mutations.__file__, "--only", "radius-inclusive"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(temporary.glob("mutation_*/output.txt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.strip() == "interrupted: nothing is left behind."
