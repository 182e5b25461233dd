"""Errors as a user sees them: one sentence, and a non-zero exit."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from tqdm import tqdm

TRACEBACK_VARIABLE = "ITERMASK_TRACEBACK"
TRACEBACK = "Traceback (most recent call last)"
ENGINE_ERROR = "is terminating due to exception"  # Ignite says it twice of every error
MISSING_REFERENCE = "is not defined in the config content"  # MONAI says more about it, which helps less
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def innermost_message(error: BaseException) -> str:
    """The sentence of the error that started a chain of errors, also when it came from MONAI's writer of images."""
    while MISSING_REFERENCE not in str(error):
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    text = str(error)
    kind = type(error).__name__
    if TRACEBACK in text:  # the text of the whole chain, innermost first
        lines = text.partition(TRACEBACK)[2].splitlines()[1:]
        kind, _, text = next(line for line in lines if line[:1].strip()).partition(": ")  # code lines are indented
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        text = f"Cannot write ({error.strerror}): make room, or name another place, and run the same command again."
    if MISSING_REFERENCE in text:
        text = f"{text.strip().rstrip('.')}: put the config that this one overrides first in --config_file."
    text = " ".join(text.split())
    return text if kind in ("ValueError", "RuntimeError", "OSError", "FileNotFoundError") else f"{kind}: {text}"


def report_errors() -> None:
    """Print an uncaught error as one line instead of a traceback; ``ITERMASK_TRACEBACK=1`` keeps the traceback.

    SIGTERM ends the process with one line, too, and Ctrl-C is answered at once.
    """
    sys.excepthook = _print_sentence
    threading.excepthook = _print_thread_error
    if not os.environ.get(TRACEBACK_VARIABLE):
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_no_engine_error)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)


def _print_sentence(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    end_progress_bars()
    if isinstance(error, KeyboardInterrupt):
        print("interrupted: run the same command again to go on.", file=sys.stderr)
    elif os.environ.get(TRACEBACK_VARIABLE):
        sys.__excepthook__(kind, error, traceback)
    else:
        print(f"error: {innermost_message(error)} ({TRACEBACK_VARIABLE}=1 shows where)", file=sys.stderr)


def end_progress_bars() -> None:
    """End the line of progress bars that an error has left open, and show what was printed before."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    sys.stdout.flush()


def _is_no_engine_error(record: logging.LogRecord) -> bool:
    return not record.name.startswith("ignite.") or ENGINE_ERROR not in record.getMessage()


def _print_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Leave the errors of the writer of TensorBoard events to the main thread, which gets them too."""
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(arguments)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"{signal.Signals(number).name}: stopped; run the same command again to go on.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Say at once that Ctrl-C was seen: what is under way in other threads ends first."""
    os.write(2, b"\ninterrupted: waiting for what is under way\n")
    raise KeyboardInterrupt
