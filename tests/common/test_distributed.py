"""The parts of the work that fall to several processes; the processes are in tests/workflows/test_distributed.py."""

import pytest
from scripts.common.distributed import partition


@pytest.mark.parametrize("number", [0, 1, 5, 13])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_item_belongs_to_one_process(number, processes):
    items = list(range(number))
    parts = [partition(items, rank, processes) for rank in range(processes)]
    assert sorted(sum(parts, [])) == items
    with pytest.raises(ValueError, match="number the processes from 0"):
        partition(items, processes, processes)
