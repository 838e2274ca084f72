"""Ranks that are slow are named; those that wait for them are not."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.autograd import DeviceType

from hekaton.failures.whereabouts import Whereabouts
from hekaton.fault.stragglers import OwnTime, Stragglers, compute_of, slow_ones
from hekaton.testing import run_command
from hekaton.torch_versions import expect_cleared_events

PLUGIN = """
import os
import time

import torch

from hekaton import trainer
from hekaton.contributions import hookimpl

HEKATON_API = ">=1,<2"
batch_on = trainer.batch_on


def slow(*given):
    if os.environ["RANK"] == "1":
        {what}
    return batch_on(*given)


@hookimpl
def hekaton_run_started(config, step, control):
    trainer.batch_on = slow
"""
RUN = [
    "train", "--model.name", "llama3", "--model.tokenizer", "byte", "--training.steps", "4", "--training.seq_len", "16",
    "--training.local_batch_size", "1", "--training.mixed_precision_param", "float32",
    "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0", "--model.overrides.dim", "16",
    "--model.overrides.n_layers", "1", "--model.overrides.n_heads", "2", "--model.overrides.n_kv_heads", "1",
    "--model.overrides.hidden_dim", "32", "--plugins.load", "slow.py", "--fault.stragglers_every", "2",
    "--fault.straggler_factor", "3",
]  # fmt: skip


def of(compute, wait=0.0, stage=0):
    return OwnTime(host="a", stage=stage, compute=compute, wait=wait)


def test_a_rank_is_compared_with_those_of_its_stage():
    ranks = {0: of(1.0), 1: of(1.0), 2: of(1.2, wait=0.9), 3: of(5.0, stage=1), 4: of(5.0, stage=1)}
    slow = slow_ones(ranks, factor=2.0)
    assert slow.keys() == {2}
    assert slow[2] == (
        "rank 2 on a takes 2.1 times as long as the median rank: 1.200 s of computation and 0.900 s of waiting for "
        "data, against 1.000 s"
    )
    assert slow_ones(ranks, factor=2.2) == {}


@pytest.mark.parametrize(("seconds", "slow"), [((0.006, 0.012), []), ((0.006, 0.02), [1]), ((0.1, 0.14), [])])
def test_milliseconds_are_noise(seconds, slow):
    assert [*slow_ones(dict(enumerate(map(of, seconds))), factor=1.5)] == slow


def test_a_rank_is_named_when_it_is_slow_twice_running(monkeypatch, caplog):
    """Other work on a machine makes now this rank slow, now that one."""
    comparisons = [{1: 0.5}, {2: 0.5}, {1: 0.5}, {}, {1: 0.5, 2: 0.5}, {2: 0.5}, {2: 0.5}]
    times = iter(comparisons)

    def gather(ranks, mine):
        slow = next(times)
        ranks[:] = [of(slow.get(rank, 0.1)) for rank in range(4)]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.autograd.profiler, "_is_profiler_enabled", True)
    compared = Stragglers(every=1, factor=1.5, stage=0, cuda=False)
    for step in range(1, 1 + len(comparisons)):
        with compared.measured(step, Whereabouts()):
            pass
    assert re.findall(r"step \d+: rank \d+", caplog.text) == ["step 6: rank 2", "step 7: rank 2"]


@pytest.mark.parametrize(("cuda", "seconds"), [(False, 0.003), (True, 0.5)])
def test_operators_that_wait_for_other_ranks_do_not_count(cuda, seconds):
    def event(name, cpu, device=0, on=DeviceType.CPU):
        return SimpleNamespace(
            name=name, self_cpu_time_total=cpu, self_device_time_total=device, device_type=on
        )

    events = [
        event("aten::mm", 1000.0, 7.0), event("aten::add", 2000.0), event("gloo:all_reduce", 9e6),
        event("c10d::allreduce_", 9e6), event("FSDP::post_backward", 9e6), event("_c10d_functional::wait_tensor", 9e6),
        event("sm90_gemm", 0.0, 5e5, DeviceType.CUDA), event("ncclDevKernel_AllReduce", 0.0, 9e6, DeviceType.CUDA),
    ]  # fmt: skip
    assert compute_of(events, cuda=cuda) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("time.sleep(0.5)", r"0\.[5-9]\d\d s of waiting"),
        ("[torch.ones(300, 300) @ torch.ones(300, 300) for _ in range(300)]", "computation"),
    ],
)
def test_a_slow_rank_of_a_run_is_named_every_so_many_steps(tmp_path, what, found):
    (tmp_path / "slow.py").write_text(PLUGIN.format(what=what))
    done = run_command(*RUN, cwd=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"step \d+: rank .*", done.stderr)
    assert re.match(r"step 4: rank 1 on \S+ takes \d+\.\d times as long as the median rank: ", line)
    assert re.search(found, line)


def test_a_rank_that_writes_a_trace_on_request_takes_part_and_is_not_compared(monkeypatch):
    gathered = []
    monkeypatch.setattr(dist, "all_gather_object", lambda ranks, mine: gathered.append(mine))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    compared = Stragglers(every=1, factor=1.5, stage=0, cuda=False)
    expect_cleared_events()
    with torch.profiler.profile(), compared.measured(1, Whereabouts()):
        pass
    with compared.measured(2, Whereabouts()):
        pass
    assert [mine is None for mine in gathered] == [True, False]


def test_a_single_process_has_nothing_to_compare(tmp_path):
    (tmp_path / "slow.py").write_text(PLUGIN.format(what="pass").replace('["RANK"]', '.get("RANK")'))
    done = run_command(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fault.stragglers_every: no effect on one process" in done.stderr
