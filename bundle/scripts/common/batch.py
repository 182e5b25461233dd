"""Cases one after another: a bad one does not stop the others, and what is to be said of all is said once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from tqdm import tqdm

from .ahead import ReadAhead
from .errors import innermost_message

MOST_LINES = 10  # of a list that is shown
PACKAGE = __name__.partition(".")[0]

logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Mapping[str, Any])


def shown_list(lines: Sequence[str]) -> list[str]:
    """The lines of a list, indented; of a long one the first and how many there are more."""
    more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return [*(f"  {line}" for line in lines[:MOST_LINES]), *more]


def ends_all(sentence: str) -> bool:
    """Whether an error is not that of a case: nothing can be written any more."""
    return sentence.startswith("Cannot write")


def raise_failed(failed: Mapping[str, str], number: int) -> None:
    """Say which cases failed, once the others are done.

    Args:
        failed: Name of each case that failed to its sentence.
        number: All cases, the failed ones too.

    Raises:
        RuntimeError: When there is any.
    """
    if not failed:
        return
    (name, sentence), *others = failed.items()
    if number == 1:
        raise RuntimeError(sentence)
    if not others:
        done = "the others are done; repair it, or leave it out with `exclude`"
        raise RuntimeError(f"1 of {number} cases failed, {name} ({done}): {sentence}")
    lines = [text if text.startswith(f"{case} ") else f"{case}: {text}" for case, text in failed.items()]
    print("\n".join(["Failed:", *shown_list(lines)]))
    if len(failed) == number:
        raise RuntimeError(f"All {number} cases failed, first {name}: {sentence}")
    names = ", ".join([*failed][:MOST_LINES]) + (", ..." if len(failed) > MOST_LINES else "")
    raise RuntimeError(
        f"{len(failed)} of {number} cases failed ({names}), the others are done: repair them, or leave them out with "
        "`exclude`, and run the same command again."
    )


class _Collector(logging.Handler):
    """Keeps the warnings of this package, those of each thread apart."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: dict[int, list[logging.LogRecord]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.own().append(record)

    def own(self) -> list[logging.LogRecord]:
        """The warnings of the thread that asks."""
        return self.records.setdefault(threading.get_ident(), [])

    def take(self) -> list[logging.LogRecord]:
        """The warnings of the thread that asks; they are kept no longer."""
        return self.records.pop(threading.get_ident(), [])


@contextmanager
def collected_warnings() -> Iterator[_Collector]:
    """Keep this package's warnings instead of showing them among progress bars."""
    package, collector = logging.getLogger(PACKAGE), _Collector()
    propagate, package.propagate = package.propagate, False
    package.addHandler(collector)
    try:
        yield collector
    finally:
        package.removeHandler(collector)
        package.propagate = propagate


def warning_lines(records: Sequence[logging.LogRecord], number: int) -> list[str]:
    """What to show of the warnings of many cases.

    Warnings that carry ``together``, a sentence with places for their ``counts``, are one line with the sums.

    Args:
        records: The warnings, at most one of a kind for each case.
        number: All cases.
    """
    groups: dict[str, list[logging.LogRecord]] = {}
    for record in records:
        groups.setdefault(getattr(record, "together", ""), []).append(record)
    single = groups.pop("", [])
    lines = []
    for sentence, group in groups.items():
        counts = [sum(column) for column in zip(*(vars(record)["counts"] for record in group), strict=True)]
        together = f"{len(group)} of {number} cases: {sentence.format(*counts)}"
        lines.append(group[0].getMessage() if number == 1 else together)
    return lines + [line.strip() for line in shown_list([record.getMessage() for record in single])]


class Cases:
    """Runs an evaluator over its cases, one after another.

    Attributes:
        failed: Name of each case that failed to the sentence of its error.
        warnings: Name of each case to what was to be said of it.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.warnings: dict[str, list[str]] = {}
        self.records: list[logging.LogRecord] = []  # of the case at work

    def sound(self, items: Sequence[Item]) -> list[Item]:
        """The items without those that were found to be bad before; their sentences are noted."""
        self.failed |= {str(item["case"]): str(item["error"]) for item in items if "error" in item}
        return [item for item in items if "error" not in item]

    def run(self, evaluator: SupervisedEvaluator, desc: str = "volumes", show: bool = True) -> None:
        """Evaluate the items of the evaluator's data set, and go on after each that fails.

        Args:
            evaluator: Its data set holds a list of items with ``case``.
            desc: What the progress bar counts.
            show: Whether to show the bar.

        Raises:
            Exception: When nothing can be written any more.
        """
        loader: Any = evaluator.data_loader
        data = loader.dataset.data
        items = self.sound(data)
        errors: list[BaseException] = []
        evaluator.add_event_handler(Events.EXCEPTION_RAISED, _keep, errors)
        evaluator.logger.setLevel(logging.CRITICAL)
        evaluator.state.epoch_length = 1
        told: list[logging.LogRecord] = []
        try:
            with collected_warnings() as warnings, _reading_ahead(loader, items, warnings):
                for item in tqdm(items, desc=desc, unit="case", disable=not (show and items)):
                    data[:] = [item]
                    self._run_one(evaluator, str(item["case"]), warnings, errors)
                    told += warnings.take()
        finally:
            data[:] = items
        for line in warning_lines(told, len(items)):
            logger.warning(line)

    def _run_one(
        self, evaluator: SupervisedEvaluator, case: str, warnings: _Collector, errors: list[BaseException]
    ) -> None:
        errors.clear()
        records = self.records = warnings.own()
        evaluator.run()
        if errors:
            sentence = innermost_message(errors[0])
            if ends_all(sentence) or not isinstance(errors[0], Exception):
                raise errors[0]
            self.failed[case] = sentence
        if records:
            self.warnings[case] = [record.getMessage() for record in records]


@contextmanager
def _reading_ahead(loader: Any, items: Sequence[Mapping[str, Any]], warnings: _Collector) -> Iterator[None]:
    """Let a data set without workers of its own read each case while the one before is computed."""
    dataset = loader.dataset
    if loader.num_workers > 0:
        yield
        return
    transform = dataset.transform
    with ReadAhead(transform, items, warnings.take, lambda noted: warnings.own().extend(noted)) as dataset.transform:
        try:
            yield
        finally:
            dataset.transform = transform


def _keep(engine: Engine, error: BaseException, errors: list[BaseException]) -> None:
    """Note an error instead of letting the engine raise it."""
    errors.append(error)
