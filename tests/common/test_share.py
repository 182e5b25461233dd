"""The parts of the work that fall to several processes."""

import pytest
from scripts.common.share import by_the_first, first_checks, join_group, share


@pytest.mark.parametrize("number", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_item_is_in_one_share_and_groups_stay_together(number, group, processes):
    items = list(range(number))
    shares = [share(items, rank, processes, group) for rank in range(processes)]
    assert sorted(sum(shares, [])) == items
    groups = [items[k : k + group] for k in range(0, number, group)]
    assert all(
        [part[k : k + group] for k in range(0, len(part), group)] == groups[r::processes]
        for r, part in enumerate(shares)
    )
    with pytest.raises(ValueError, match="number the processes from 0"):
        share(items, processes, processes)


def test_one_process_checks_for_itself():
    """Several are in tests/workflows/test_distributed.py."""
    called = []
    first_checks(lambda: called.append(True))
    assert called and not join_group()

    def refuse():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        first_checks(refuse)


def test_step_that_is_not_shared_is_done_in_one_process(monkeypatch):
    """Several are in tests/workflows/test_distributed.py."""

    @by_the_first
    def double(number, *, more=0):
        """Twice a number."""
        return 2 * number + more

    assert double(3, more=1) == 7 and double.__doc__ == "Twice a number."
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "0")
    assert double(3) == 6
    monkeypatch.setenv("RANK", "1")  # of an array of jobs
    with pytest.raises(RuntimeError, match=r"is not shared, and this is process 1 \(RANK\) of several: run it once"):
        double(3)
