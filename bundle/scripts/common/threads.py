"""As many threads as the machine has cores to spare.

Threads of OpenMP spin while they wait for each other. Where another process holds one of their cores, all of them wait
for it: two processes with a thread for each core are ten times slower side by side than alone. With one thread for each
core that is free they lose what they share, and no more.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch

STAT = Path("/proc/stat")
INTERVAL = 0.5  # seconds between two looks; the kernel counts in steps of 0.01
SPARE = 0.4  # of a core that others may use before it counts as taken
# Variables by which a user has a word of their own; packages set others: scikit-learn sets KMP_DUPLICATE_LIB_OK.
OWN_WORD = ("OMP_", "GOMP_", "KMP_BLOCKTIME", "KMP_AFFINITY", "MKL_NUM_THREADS")


def free_cores(cores: int, others: float) -> int:
    """How many threads to compute with, 1 or more.

    Args:
        cores: Cores that this process may use.
        others: Of these, how many other processes keep busy.
    """
    return max(1, math.floor(cores - others + SPARE))


def usage(cores: set[int]) -> tuple[float, float, float]:
    """The time, how long some cores have computed so far, and how long this process has, in seconds."""
    names, busy = {f"cpu{core}" for core in cores}, 0
    for line in STAT.read_text().splitlines():
        name, *ticks = line.split()
        if name in names:
            busy += sum(int(ticks[index]) for index in (0, 1, 2, 5, 6))  # user, nice, system, both kinds of interrupts
    return time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time()


class CoreWatch:
    """Sets PyTorch's number of threads to the number of cores that other processes leave free.

    A number that anybody else sets later stays.

    Args:
        most: Threads on a free machine.
    """

    def __init__(self, most: int) -> None:
        self.cores = os.sched_getaffinity(0)
        self.most = self.threads = most
        self.seen = usage(self.cores)

    def fit(self) -> None:
        """Look at the cores, unless the last look was just now, and set the number of threads."""
        if time.monotonic() - self.seen[0] < INTERVAL or torch.get_num_threads() != self.threads:
            return
        before, self.seen = self.seen, usage(self.cores)
        elapsed, busy, own = (now - then for now, then in zip(self.seen, before, strict=True))
        self.threads = min(self.most, free_cores(len(self.cores), max(0.0, busy - own) / elapsed))
        if self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)


_watches: list[CoreWatch] = []


def watch_cores() -> None:
    """Let `fit_threads` do its work in this process, where Linux tells the load and the user has not chosen threads."""
    chosen = any(name.startswith(OWN_WORD) for name in os.environ)
    if torch.get_num_threads() > 1 and not chosen and STAT.exists() and not _watches:
        _watches.append(CoreWatch(torch.get_num_threads()))


def fit_threads() -> None:
    """Use the cores that other processes leave free from now on; takes no time, so that any loop may call it."""
    for watch in _watches:
        watch.fit()
