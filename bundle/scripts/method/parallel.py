"""Networks on several cores: a few slices for each thread, and not all threads for each operation."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

MOST_SLICES = 8  # at once: more leave the processor's caches
MOST_WORKERS = 8  # at once: Python starts their operations one by one
Model = TypeVar("Model", bound=nn.Module)


def run_in_threads(network: nn.Module, parts: Sequence[Tensor], threads: int) -> list[Tensor]:
    """What a network makes of several batches, each computed by a thread of its own.

    Threads of OpenMP wait for each other after each operation; these only at the end.

    Args:
        network: Used by all threads at once, without gradients.
        parts: Batches (N, C, H, W) on the CPU.
        threads: To compute with in all.
    """

    @torch.no_grad()
    def ask(part: Tensor) -> Tensor:
        return network(part)

    workers = min(threads, MOST_WORKERS, len(parts))
    if workers < 2:
        return [ask(part) for part in parts]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            return list(pool.map(ask, parts))
    finally:
        torch.set_num_threads(before)  # for threads that others start later


class InThreads(nn.Module):
    """A network that shares the slices of a batch among threads, where it computes on the CPU without gradients.

    Args:
        network: Gives each slice the same result whatever the others of its batch are, but for rounding.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        if image.device.type != "cpu" or torch.is_grad_enabled():
            return self.network(image)
        threads = torch.get_num_threads()
        size = min(MOST_SLICES, math.ceil(len(image) / min(threads, MOST_WORKERS)))
        return torch.cat(run_in_threads(self.network, image.split(max(1, size)), threads))


def in_threads(model: Model) -> Model:
    """A twin of a model, with the same weights, whose networks are `InThreads`.

    Args:
        model: A `Refinement`, whose children are networks.
    """
    twin = copy.copy(model)
    twin._modules = {name: InThreads(network) for name, network in model.named_children() if network is not None}
    return twin
