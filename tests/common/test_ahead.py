"""The next case is read while one is computed, and each case keeps what belongs to it."""

import threading

import pytest
import torch
from scripts.common.ahead import ReadAhead

CASES = [{"case": name} for name in "abcd"]


class Reader:
    """Reads cases and notes which, in which thread, and with how many threads of PyTorch."""

    def __init__(self, bad=()):
        self.bad, self.read, self.began = bad, [], {case["case"]: threading.Event() for case in CASES}
        self.noted = []

    def __call__(self, case):
        name = case["case"]
        self.began[name].set()
        self.read.append((name, threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        if name in self.bad:
            raise ValueError(f"{name} is damaged.")
        return name.upper()

    def notes(self):
        return f"of {self.read[-1][0]}"


def test_next_case_is_read_before_it_is_asked_for_and_no_more():
    reader = Reader()
    with ReadAhead(reader, CASES) as ahead:
        assert ahead(CASES[0]) == "A"
        assert reader.began["b"].wait(10)
        assert ahead(CASES[1]) == "B" and reader.began["c"].wait(10)
        assert not reader.began["d"].is_set()
        assert [ahead(case) for case in CASES[2:]] == ["C", "D"]
    assert [name for name, *_ in reader.read] == [*"abcd"] and not any(main for _, main, _ in reader.read)


def test_error_and_notes_come_with_their_case():
    reader, seen = Reader(bad="b"), []
    with ReadAhead(reader, CASES, reader.notes, seen.append) as ahead:
        assert ahead(CASES[0]) == "A" and reader.began["b"].wait(10) and seen == ["of a"]
        with pytest.raises(ValueError, match="^b is damaged.$"):
            ahead(CASES[1])
        assert seen == ["of a", "of b"] and ahead(CASES[2]) == "C"


def test_case_that_is_left_out_does_no_harm():
    reader = Reader(bad="b")
    with ReadAhead(reader, CASES) as ahead:
        assert [ahead(CASES[0]), ahead(CASES[2]), ahead(CASES[3])] == ["A", "C", "D"]


def test_reader_leaves_threads_to_the_networks():
    before, reader = torch.get_num_threads(), Reader()
    torch.set_num_threads(4)
    try:
        with ReadAhead(reader, CASES) as ahead:
            ahead(CASES[0])
        assert torch.get_num_threads() == 4 and reader.read[0][2] == 2
    finally:
        torch.set_num_threads(before)
