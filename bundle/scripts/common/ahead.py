"""Reading the next case while one is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import torch

Case = Mapping[str, Any]


class Read(NamedTuple):
    """What became of a case: its data, or an error; and what was noted meanwhile."""

    data: Any
    error: BaseException | None
    noted: Any


class ReadAhead:
    """A transform of cases that is at work on the next one, in a thread, while the caller uses one; as a context.

    At most one case that is not used yet is in memory. An error is raised where its case is asked for.

    Args:
        transform: At work in the thread alone; the caller may invert it meanwhile.
        cases: In the order in which they are asked for; each is asked for once, or left out.
        notes: Called in the thread after each case, gives what was noted of it.
        take: Called with these notes where the case is asked for.
    """

    def __init__(
        self,
        transform: Callable[[Any], Any],
        cases: Sequence[Case],
        notes: Callable[[], Any] = lambda: None,
        take: Callable[[Any], object] = lambda noted: None,
    ):
        self.transform = transform
        self.following = {id(case): after for case, after in zip(cases, cases[1:], strict=False)}
        self.notes, self.take = notes, take
        self.threads = torch.get_num_threads()
        few = max(1, self.threads // 2)  # the networks have threads of their own
        self.pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(few,))
        self.reading: tuple[Case, Future[Read]] | None = None

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads)  # for threads that others start later

    def __call__(self, case: Case) -> Any:
        """Give the data of a case, and begin with the one after it."""
        ready = self.reading is not None and self.reading[0] is case
        future = self.reading[1] if self.reading is not None and ready else self.pool.submit(self._read, case)
        data, error, noted = future.result()
        after = self.following.get(id(case))
        self.reading = None if after is None else (after, self.pool.submit(self._read, after))
        self.take(noted)
        if error is not None:
            raise error
        return data

    def _read(self, case: Case) -> Read:
        try:
            data, error = self.transform(case), None
        except BaseException as found:
            data, error = None, found
        return Read(data, error, self.notes())
