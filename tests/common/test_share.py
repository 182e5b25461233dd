"""The parts of the work that fall to several processes."""

import pytest
from scripts.common.share import first_checks, join_group, share


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
