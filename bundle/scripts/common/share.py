"""Which part of the work falls to one of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


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
