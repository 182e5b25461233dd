"""Which part of the work falls to one of several processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist

Item = TypeVar("Item")
Result = TypeVar("Result")
Options = ParamSpec("Options")
SECONDS_TO_END = 30.0  # that torchrun has, to notice that one process failed


def share(items: Sequence[Item], rank: int, world_size: int, group: int = 1) -> list[Item]:
    """The items of one process: every item belongs to exactly one, and none is repeated to make shares even.

    Args:
        items: All items, the same on every process.
        rank: This process.
        world_size: Number of processes.
        group: Items that stay together, in this order, so that a batch holds the same items for any ``world_size``.

    Returns:
        Groups ``rank``, ``rank + world_size``, ... as one list, which may be empty.

    Raises:
        ValueError: When ``rank`` is none of ``world_size`` processes.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in [0, {world_size}), got {rank}: number the processes from 0.")
    return [
        item for start in range(rank * group, len(items), world_size * group) for item in items[start : start + group]
    ]


def join_group() -> bool:
    """Whether this is one of several processes of torchrun, which can speak to each other from now on."""
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return False
        dist.init_process_group("gloo", timeout=timedelta(days=1))
    return dist.get_world_size() > 1


def first_checks(check: Callable[[], None]) -> None:
    """Let the first of several processes check what it alone will write; where it refuses, all end, and it says why.

    Args:
        check: Raises an error that says what is wrong.

    Raises:
        Exception: What ``check`` raises, in the first process.
        SystemExit: In the others.
    """
    if not join_group():
        check()
        return
    error = None
    if dist.get_rank() == 0:
        try:
            check()
        except Exception as caught:
            error = caught
    agreed = [error is None]
    dist.broadcast_object_list(agreed, src=0)
    if error is not None:
        raise error
    if not agreed[0]:
        _end_silently()


def by_the_first(work: Callable[Options, Result]) -> Callable[Options, Result]:
    """Let the first of several processes do a step that is not shared, while the others wait for its result.

    Args:
        work: A step whose result can be pickled.

    Returns:
        The same, which raises a ``RuntimeError`` in a process that is not the first and cannot wait for it, as that of
        an array of jobs.
    """

    @wraps(work)
    def alone(*arguments: Options.args, **options: Options.kwargs) -> Result:
        results: list[Result] = []
        together = join_group()
        if not together and (rank := int(os.environ.get("RANK", "0"))) > 0:
            raise RuntimeError(
                f"This step is not shared, and this is process {rank} (RANK) of several: run it once, without RANK and "
                "WORLD_SIZE."
            )
        first_checks(lambda: results.append(work(*arguments, **options)))
        if together:
            shared: list[Any] = results or [None]
            dist.broadcast_object_list(shared, src=0)
            results = shared
        return results[0]

    return alone


def _end_silently() -> None:
    """Wait until torchrun ends this process, so that it does not end the first one before that has said why."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    time.sleep(SECONDS_TO_END)
    raise SystemExit(1)
