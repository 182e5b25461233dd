"""As many threads as cores are free, unless the user has chosen."""

import pytest
from scripts.common import threads


@pytest.mark.parametrize(("cores", "others", "free"), [(8, 0, 8), (8, 0.3, 8), (8, 0.5, 7), (8, 7.9, 1), (2, 4, 1)])
def test_a_busy_core_is_left_to_others(cores, others, free):
    assert threads.free_cores(cores, others) == free


def test_threads_that_a_user_has_chosen_stay(monkeypatch):
    monkeypatch.setattr(threads, "_watches", [])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 2)
    threads.watch_cores()
    assert threads._watches == []


@pytest.mark.skipif(not threads.STAT.exists(), reason="needs /proc/stat, which Linux has")
def test_threads_follow_the_load_until_somebody_else_sets_them(monkeypatch):
    number, seconds, busy = [4], [0.0], [0.0]
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(threads, "usage", lambda _: (seconds[0], busy[0], 0.0))
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(threads.torch, "set_num_threads", lambda value: number.__setitem__(0, value))
    watch = threads.CoreWatch(4)
    for load, expected in ((3.0, 1), (0.0, 4), (1.0, 3)):  # cores that others keep busy for a second
        seconds[0], busy[0] = seconds[0] + 1, busy[0] + load
        watch.fit()
        assert number[0] == expected
    number[0] = 2
    seconds[0] += 1
    watch.fit()
    assert number[0] == 2
