"""The order in which slices are drawn for training: a stream that any number of processes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class SliceStream(Sampler[int]):
    """An endless stream of shuffled slices that can be entered at any iteration.

    Every slice comes once before any comes again, or, with weights, slices are drawn with replacement. With several
    ranks each takes its part of one common stream.

    Args:
        number: Slices of the data set.
        batch_size: Slices of one iteration on one rank.
        seed: Seed of the order.
        weights: How often each slice is drawn beside the others; None: all alike.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        number: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
    ):
        self.number = number
        self.batch_size = batch_size
        self.seed = seed
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.rank = rank
        self.world_size = world_size
        self.iteration = 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        position = self.iteration * self.batch_size * self.world_size + self.rank
        shuffled_pass = -1
        while True:
            if position // self.number != shuffled_pass:
                shuffled_pass = position // self.number
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + shuffled_pass)
                if self.weights is None:
                    order = torch.randperm(self.number, generator=generator).tolist()
                else:
                    order = torch.multinomial(self.weights, self.number, True, generator=generator).tolist()
            yield order[position % self.number]
            position += self.world_size
