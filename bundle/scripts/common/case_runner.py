"""Scans one after another: a bad one does not stop the others, and what is to be said of all is said once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging.handlers import BufferingHandler
from typing import Any, TypeVar

import torch
from ignite.engine import Events
from monai.data import ThreadBuffer
from monai.engines import SupervisedEvaluator
from tqdm import tqdm

from .errors import innermost_message

MOST_LINES = 10  # of a list that is shown
PACKAGE = __name__.partition(".")[0]

logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Mapping[str, Any])


def shown_list(lines: Sequence[str]) -> list[str]:
    """The lines of a list, indented; of a long one the first and how many there are more."""
    more = [f"  and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return [*(f"  {line}" for line in lines[:MOST_LINES]), *more]


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


def _read(items: Sequence[Item], transform: Callable[[Item], Any]) -> Iterator[tuple[str, Any]]:
    """Name and data or error of each case, read in a thread that leaves half of the processor to the networks."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    for item in items:
        found: Any = None
        try:
            found = dict(transform(item))
        except BaseException as error:  # which a thread would not tell
            found = error
        yield item["case"], found


class CaseRunner:
    """Runs an evaluator over its cases, one after another, and reads each while the one before is computed.

    What is to be said of a case is what reading puts under ``warnings``, and what this package logs while the case is
    computed: it is kept until all cases are done, instead of being shown among progress bars.

    Attributes:
        failed: Name of each case that failed to the sentence of its error.
        warnings: Name of each case to what is to be said of it, the one at work included.
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.warnings: dict[str, list[str]] = {}
        self.logged = BufferingHandler(capacity=10**6)
        self.logged.setLevel(logging.WARNING)

    def usable(self, items: Sequence[Item]) -> list[Item]:
        """The items without those that were found to be bad before; their sentences are noted."""
        self.failed |= {str(item["case"]): str(item["error"]) for item in items if "error" in item}
        return [item for item in items if "error" not in item]

    def run(self, evaluator: SupervisedEvaluator, show: bool = True) -> None:
        """Evaluate the items of the evaluator's data set, and go on after each that fails.

        Args:
            evaluator: Its data set holds a list of items with ``case``.
            show: Whether to show a progress bar.

        Raises:
            Exception: When nothing can be written any more.
        """
        loader: Any = evaluator.data_loader
        items, threads, package = self.usable(loader.dataset.data), torch.get_num_threads(), logging.getLogger(PACKAGE)
        errors: list[BaseException] = []
        evaluator.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: errors.append(error))
        evaluator.logger.setLevel(logging.CRITICAL)
        evaluator.state.epoch_length = 1
        reader = ThreadBuffer(_read(items, loader.dataset.transform))
        package.addHandler(self.logged)
        package.propagate = False
        try:
            for case, found in tqdm(reader, "scans", len(items), unit="scan", disable=not (show and items)):
                errors[:] = [found] if isinstance(found, BaseException) else []
                if not errors:
                    self.warnings[case] = found.pop("warnings", [])
                    evaluator.data_loader = [loader.collate_fn([found])]
                    evaluator.run()
                self.warnings_of(case)
                if errors:
                    self._note(case, errors[0])
        finally:
            reader.stop()
            package.removeHandler(self.logged)
            package.propagate = True
            evaluator.data_loader = loader
            torch.set_num_threads(threads)
        for line in shown_list([sentence for sentences in self.warnings.values() for sentence in sentences]):
            logger.warning(line.strip())

    def warnings_of(self, case: str) -> list[str]:
        """What is to be said of the case at work so far, each sentence once."""
        sentences = self.warnings.get(case, []) + [record.getMessage() for record in self.logged.buffer]
        self.logged.flush()
        self.warnings[case] = [*dict.fromkeys(sentences)]
        return self.warnings[case]

    def _note(self, case: str, error: BaseException) -> None:
        sentence = innermost_message(error)
        if sentence.startswith("Cannot write") or not isinstance(error, Exception):  # which ends all
            raise error
        self.failed[case] = sentence
