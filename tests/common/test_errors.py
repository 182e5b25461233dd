"""An error becomes the one sentence that a user of the command line reads."""

import json
import logging
import sys
import traceback

import pytest
from scripts.common.errors import _is_no_engine_error, innermost_message, report_errors
from tqdm import tqdm


def chained(*errors, suppressed=False):
    """An error raised from another, and so on; the first is the innermost."""
    try:
        if len(errors) == 1:
            raise errors[0]
        try:
            raise chained(*errors[:-1], suppressed=suppressed)
        except Exception as inner:
            raise errors[-1] from (None if suppressed else inner)
    except Exception as outer:
        return outer


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, FileNotFoundError])
def test_sentence_of_the_first_error_of_a_chain(kind):
    error = chained(kind("Expected this."), RuntimeError("applying transform"), RuntimeError("Failed to instantiate"))
    assert innermost_message(error) == "Expected this."


def test_suppressed_errors_are_no_cause():
    assert (
        innermost_message(chained(KeyError("x"), ValueError("Expected\n  this."), suppressed=True)) == "Expected this."
    )


def test_error_while_handling_another_leads_to_the_first():
    try:
        try:
            raise ValueError("First.")
        except ValueError:
            raise RuntimeError("Second.")  # noqa: B904
    except RuntimeError as error:
        assert innermost_message(error) == "First."


@pytest.mark.parametrize(
    ("error", "message"), [(KeyError("x"), "KeyError: 'x'"), (ZeroDivisionError(), "ZeroDivisionError:")]
)
def test_errors_that_are_no_sentence_keep_their_kind(error, message):
    assert innermost_message(error).strip() == message


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([ValueError("one: Expected this.")], "one: Expected this."),
        ([ValueError("Expected this."), RuntimeError("applying transform: Compose")], "Expected this."),
        ([KeyError("x"), RuntimeError("applying transform")], "KeyError: 'x'"),
        ([AssertionError()], "AssertionError:"),
        ([StopAsyncIteration("x")], "StopAsyncIteration: x"),
        ([json.JSONDecodeError("no", "doc", 0)], "json.decoder.JSONDecodeError: no: line 1 column 1 (char 0)"),
    ],
)
def test_error_that_is_the_text_of_a_traceback_is_its_innermost_sentence(errors, message):
    text = "".join(traceback.format_exception(chained(*errors)))
    assert innermost_message(RuntimeError(f"SaveImage cannot find a suitable writer.\n{text}")).strip() == message


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("ITERMASK_TRACEBACK", raising=False)
    report_errors()
    return sys.excepthook


def test_uncaught_error_is_one_line(hook, capsys):
    error = chained(ValueError("Expected\nthis."), RuntimeError("wrapped"))
    hook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "error: Expected this. (ITERMASK_TRACEBACK=1 shows where)\n"
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted: run the same command again to go on.\n"


def test_traceback_on_request(hook, capsys, monkeypatch):
    monkeypatch.setenv("ITERMASK_TRACEBACK", "1")
    error = chained(ValueError("Expected this."))
    hook(type(error), error, error.__traceback__)
    assert "Traceback (most recent call last)" in (printed := capsys.readouterr().err) and "Expected this." in printed


def test_engine_adds_no_line_to_an_error(hook, monkeypatch):
    record = logging.LogRecord("ignite.engine", logging.ERROR, "", 0, "Engine run is terminating due to", None, None)
    kept = logging.LogRecord("scripts.x", logging.ERROR, "", 0, "x is terminating due to exception: y", None, None)
    record.msg += " exception: <object at 0x7f>"
    assert not _is_no_engine_error(record) and _is_no_engine_error(kept)


def test_error_begins_a_line_after_a_progress_bar(hook, capsys):
    bar = tqdm(total=3)
    bar.update()
    hook(ValueError, ValueError("Expected this."), None)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[-1] == "error: Expected this. (ITERMASK_TRACEBACK=1 shows where)"
