"""Threads are as many as the machine has cores to spare."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS
from ignite.engine import Engine
from scripts.common import threads
from scripts.common.threads import CoreWatch, fit_threads, free_cores, watch_cores
from scripts.training.handlers import FitThreads

needs_stat = pytest.mark.skipif(not threads.STAT.exists(), reason="only Linux tells the load of each core")


@pytest.mark.parametrize(
    ("cores", "others", "expected"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 0.5, 1), (2, 1.0, 1), (2, 2.0, 1), (8, 1.0, 7), (8, 5.5, 2), (1, 0.0, 1)],
)
def test_cores_that_others_use_are_left_to_them(cores, others, expected):
    assert free_cores(cores, others) == expected


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores, of whose load a test tells; it notes the threads that are set."""
    state = SimpleNamespace(now=10.0, busy=100.0, own=5.0, threads=4)

    def spend(seconds, own, others):
        state.now, state.own, state.busy = state.now + seconds, state.own + own, state.busy + own + others

    state.spend = spend
    monkeypatch.setattr(threads, "usage", lambda cores: (state.now, state.busy, state.own))
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: state.now))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: state.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(state, "threads", number))
    monkeypatch.setattr(threads, "_watches", [])
    for name in [name for name in os.environ if name.startswith(threads.OWN_WORD)]:
        monkeypatch.delenv(name)
    return state


def test_threads_follow_the_load_of_others_and_not_the_own(machine):
    watch_cores()
    for own, others, expected in ((8.0, 0.0, 4), (4.0, 4.0, 2), (2.0, 6.0, 1), (2.0, 0.0, 4)):
        machine.spend(2.0, own, others)
        fit_threads()
        assert machine.threads == expected


def test_a_look_is_not_repeated_at_once(machine):
    watch_cores()
    machine.spend(threads.INTERVAL / 2, 0.1, 3.0)
    fit_threads()
    assert machine.threads == 4
    machine.spend(threads.INTERVAL, 0.1, 3.0)
    fit_threads()
    assert machine.threads == 1


def test_number_that_somebody_else_sets_stays(machine):
    watch_cores()
    machine.threads = 3
    machine.spend(2.0, 2.0, 6.0)
    fit_threads()
    assert machine.threads == 3


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"])
def test_users_who_choose_are_left_alone(machine, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    watch_cores()
    machine.spend(2.0, 2.0, 6.0)
    fit_threads()
    assert machine.threads == 4


def test_there_are_never_more_threads_than_at_the_start(machine):
    machine.threads = 2
    watch_cores()
    machine.spend(2.0, 2.0, 0.0)
    fit_threads()
    assert machine.threads == 2


def test_every_iteration_of_a_training_looks(machine):
    watch_cores()
    trainer = Engine(lambda engine, batch: machine.spend(1.0, 1.0, 2.0))
    FitThreads().attach(trainer)
    trainer.run([0] * 3, max_epochs=1)
    assert machine.threads == 2


@needs_stat
def test_what_this_process_computes_is_its_own():
    watch = CoreWatch(1)
    before = threads.usage(watch.cores)
    while threads.usage(watch.cores)[2] - before[2] < 0.3:
        torch.randn(200, 200).sort()
    now, busy, own = (after - then for after, then in zip(threads.usage(watch.cores), before, strict=True))
    assert own >= 0.3 and busy > 0.3 * own and busy < 2 * len(watch.cores) * now  # a guest's clocks are no exact ones


RUN = """
import sys
import monai.bundle.scripts
from scripts.common import threads
from scripts.common.guard import guard
threads.usage = lambda cores: (0.0, 0.0, 0.0)
sys.argv = [monai.bundle.scripts.__file__.replace("scripts.py", "__main__.py"), "run", "inference"]
import torch
torch.set_num_threads(2)
guard()
print(len(threads._watches))
"""


@needs_stat
@pytest.mark.parametrize(
    ("chosen", "watches"), [({"KMP_DUPLICATE_LIB_OK": "True"}, "1"), ({"OMP_NUM_THREADS": "2"}, "0")]
)
def test_every_command_watches(chosen, watches):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(threads.OWN_WORD)}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=CONFIGS.parent, env=environment | chosen, capture_output=True, text=True
    )
    assert done.stdout.split() == [watches], done.stderr
