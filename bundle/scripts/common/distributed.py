"""Several processes: which items belong to which of them, and how they end together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


def partition(items: Sequence[Item], rank: int, world_size: int) -> list[Item]:
    """The items of one process: ``rank``, ``rank + world_size``, and so on; each belongs to exactly one process.

    The processes need not know of each other: an array of jobs gives each its own ``RANK`` and one ``WORLD_SIZE``.

    Args:
        items: All items, the same on every process.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: When ``rank`` is none of ``world_size`` processes.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in [0, {world_size}), got {rank}: number the processes from 0.")
    return list(items[rank::world_size])


def is_first() -> bool:
    """Whether this process checks, writes and says what is common to all, as the only one or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_others() -> None:
    """Wait under torchrun until every process is here, because it ends all of them when one fails."""
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=1))
        dist.barrier()
