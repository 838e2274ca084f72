"""Context parallel: what each rank holds, by hand, and exact attention over it."""

from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hekaton.errors import ConfigError
from hekaton.parallel.context import ContextGroup, contiguous, head_tail
from hekaton.testing.distributed import run_processes
from hekaton_parallel.context import ring
from hekaton_parallel.ring import _KERNELS, has_flash


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


def test_windows_chunks_and_sinks_are_those_of_the_whole_sequence():
    run_processes(Path(__file__).with_name("context_on_processes.py"), "attend_by_patterns", processes=2)


def test_a_window_off_by_one_is_noticed():
    script = Path(__file__).with_name("context_on_processes.py")
    with pytest.raises(AssertionError, match="not close"):
        run_processes(script, "attend_by_patterns", processes=2, off_by_one=True)


def test_the_ring_refuses_what_it_cannot_compute_in_a_modules_place():
    class Other(torch.nn.Module):
        requires = ("window",)

    group = ContextGroup(process_group=None, load_balance=False)
    with pytest.raises(ConfigError, match="the ring cannot compute window in the place of Other"):
        ring(None, group).replace(Other())


@pytest.mark.parametrize("processes", [2, 4])
def test_the_ring_over_flash_kernels_is_attention_over_the_whole_sequence(processes):
    run_processes(Path(__file__).with_name("context_on_processes.py"), "attend_by_flash", processes=processes)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "has"),
    [
        ("cpu", torch.float32, 20, True),
        ("cpu", torch.float64, 64, False),  # torch's loop would merge it in float32
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.bfloat16, 20, False),
        ("cuda", torch.bfloat16, 512, False),
    ],
)
def test_flash_kernels_are_used_where_the_device_supports_them(device, dtype, head_dim, has):
    with FakeTensorMode():
        assert has_flash(torch.empty(1, 2, 4, head_dim, dtype=dtype, device=device)) is has


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_flash_kernels_backward_is_given_everything_it_takes(device):
    _, forward, backward, kept = _KERNELS[device]
    given = {"grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", *kept}
    assert {
        argument.name for argument in backward._schema.arguments if not argument.has_default_value()
    } == given
    of_forward = [str(result.type) for result in forward._schema.returns[2 : 2 + len(kept)]]
    of_backward = {argument.name: str(argument.type) for argument in backward._schema.arguments}
    assert of_forward == [of_backward[name] for name in kept]
