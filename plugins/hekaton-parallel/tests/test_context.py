"""Context parallel: what each rank holds, by hand, and exact attention over it."""

from pathlib import Path

import pytest

from hekaton.parallel.context import contiguous, head_tail
from hekaton.testing.distributed import run_processes


def test_head_tail_pairs_early_and_late_stretches():
    assert head_tail(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert contiguous(4, 2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_head_tail_costs_each_rank_the_same(degree):
    """A causal query at position p looks at p + 1 keys."""
    costs = {int((part + 1).sum()) for part in head_tail(24 * degree, degree).chunk(degree)}
    assert len(costs) == 1


@pytest.mark.parametrize("processes", [2, 4])
def test_every_strategy_is_attention_over_the_whole_sequence(processes):
    run_processes(Path(__file__).with_name("context_on_processes.py"), "attend", processes=processes)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_ring_over_flash_kernels_is_attention_over_the_whole_sequence(processes):
    run_processes(Path(__file__).with_name("context_on_processes.py"), "attend_by_flash", processes=processes)
