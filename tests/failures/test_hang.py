"""A process that makes no progress is reported with where all are, and by policy the run ends."""

import contextlib
import json
import re
import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from hekaton.failures import board
from hekaton.failures.collectives import waiting
from hekaton.failures.hang import Stuck, hangs_are_shown, in_words
from hekaton.failures.whereabouts import Whereabouts
from hekaton.testing import run_command

HOST = socket.gethostname()
RUN = [
    "train", "--model.name", "llama3", "--model.tokenizer", "byte", "--training.steps", "5",
    "--training.seq_len", "16", "--training.local_batch_size", "1", "--training.mixed_precision_param", "float32",
    "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0", "--model.overrides.dim", "16",
    "--model.overrides.n_layers", "1", "--model.overrides.n_heads", "2", "--model.overrides.n_kv_heads", "1",
    "--model.overrides.hidden_dim", "32", "--job.dump_folder", "out", "--plugins.load", "hangs.py",
]  # fmt: skip
PLUGIN = """
import os
import signal
import time

from hekaton.contributions import hookimpl

HEKATON_API = ">=1,<2"


def wait_here():
    {what}


@hookimpl
def hekaton_step_ended(step, metrics, control):
    if step == 3 and os.environ.get("RANK", "0") == "{rank}":
        wait_here()
"""


def stuck(rank: int, step: int, phase: str, *collectives: str) -> Stuck:
    stack = f"  file.py:1 of_{rank}"
    return Stuck(
        rank=rank, host="a", step=step, phase=phase, seconds=30.0, stack=stack, collectives=collectives
    )


def test_those_that_the_others_wait_for_come_first():
    found = {
        0: stuck(0, 7, "forward_backward"), 1: stuck(1, 7, "data"), 2: stuck(2, 7, "forward_backward"),
    }  # fmt: skip
    assert in_words(found, world_size=4, hosts=lambda rank: "b").splitlines() == [
        "no progress:",
        "  rank 3 on b: nothing heard of",
        "  rank 1 on a: in step 7 (data) for 30 s",
        "  ranks 0 on a, 2 on a: in step 7 (forward_backward) for 30 s",
        "  stack of rank 1:",
        "    file.py:1 of_1",
    ]
    earlier = {**found, 2: stuck(2, 6, "after the step")}
    assert "rank 2 on a: in step 6" in in_words(earlier, world_size=3, hosts=lambda rank: "b").splitlines()[1]


def test_ranks_that_wait_in_different_collectives_are_told_apart():
    phase = "forward_backward"
    found = {
        rank: stuck(rank, 7, phase, f"all_gather {rank // 2} of mesh_fsdp (float [4])") for rank in range(4)
    }
    assert in_words(found, world_size=4, hosts=lambda rank: "b").splitlines()[1:3] == [
        "  ranks 0 on a, 1 on a: in step 7 (forward_backward) for 30 s, waiting in all_gather 0 of mesh_fsdp (float [4])",
        "  ranks 2 on a, 3 on a: in step 7 (forward_backward) for 30 s, waiting in all_gather 1 of mesh_fsdp (float [4])",
    ]


def test_a_run_of_one_process_reports_a_hang_and_goes_on(tmp_path):
    (tmp_path / "hangs.py").write_text(PLUGIN.format(what="time.sleep(4)", rank=0))
    done = run_command(*RUN, "--fault.hang_seconds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no progress:") == 1
    assert f"rank 0 on {HOST}: in step 3 (after the step) for 2 s" in done.stderr
    assert " wait_here" in done.stderr
    (file,) = (tmp_path / "out/hangs").iterdir()
    assert file.name == "step-3-rank-0.txt"
    assert "in wait_here" in file.read_text()


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_stack_and_the_run_ends(tmp_path):
    (tmp_path / "hangs.py").write_text(PLUGIN.format(what="time.sleep(60)", rank=1))
    done = run_command(
        *RUN, "--fault.hang_seconds", "4", "--fault.hang", "abort", cwd=tmp_path, processes=2, timeout=50
    )
    said = done.stderr
    assert done.returncode == 1, said
    assert said.count("no progress:") >= 1
    assert f"rank 1 on {HOST}: in step 3 (after the step) for " in said
    waits = r"waiting in \w+ \d+ of \w+ \(\w+ \[\d+\]\)"
    assert re.search(rf"rank 0 on {HOST}: in step 4 \(\w+\) for \d+ s, {waits}\n", said), said
    assert re.search(rf"\n{waits}\n", (tmp_path / "out/hangs/step-4-rank-0.txt").read_text())
    assert " wait_here" in said.partition("stack of rank 1:")[2]
    assert {file.name for file in (tmp_path / "out/hangs").iterdir()} == {
        "step-3-rank-1.txt", "step-4-rank-0.txt",
    }  # fmt: skip


@pytest.mark.slow
def test_a_process_that_is_stopped_is_one_that_nothing_is_heard_of(tmp_path):
    (tmp_path / "hangs.py").write_text(PLUGIN.format(what="os.kill(os.getpid(), signal.SIGSTOP)", rank=1))
    done = run_command(
        *RUN, "--fault.hang_seconds", "4", "--fault.hang", "abort", cwd=tmp_path, processes=2, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert f"rank 1 on {HOST}: nothing heard of" in done.stderr
    assert f"rank 0 on {HOST}: in step 4 (" in done.stderr


def move_until(holds, *places):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        for where in places:
            where.at("data", step=2)
        time.sleep(0.05)


def test_what_another_torch_records_keeps_no_report_away(monkeypatch):
    recorded = json.dumps({"entries": [{"retired": False, "process_group": "mesh"}]})
    monkeypatch.setattr(torch._C._distributed_c10d, "_dump_fr_trace_json", lambda **_: recorded)
    assert waiting() == []


def test_each_hang_is_reported_without_those_of_before(tmp_path, caplog, hekaton_log):
    """Also one in the same step; the rank that hung before says nothing the second time."""
    hekaton_log.propagate = True
    store = HashStore()
    places = [Whereabouts(), Whereabouts()]
    reports = []
    with contextlib.ExitStack() as watched:
        for rank, where in enumerate(places):
            board_of_rank = board.Board(store, rank=rank, world_size=2)
            board_of_rank.arrive()
            watched.enter_context(
                hangs_are_shown(
                    where, board_of_rank, rank=rank, world_size=2, seconds=0.4, abort=False, folder=tmp_path
                )
            )
            where.at("data", step=1)
        for phase, hanging in (("forward_backward", 1), ("save", 0)):
            caplog.clear()
            places[hanging].at(phase, step=2)
            move_until(lambda: "no progress" in caplog.text, places[1 - hanging])
            reports.append(caplog.text)
            again = f"rank {hanging} makes progress again"
            move_until(lambda again=again: again in caplog.text, *places)
    assert f"rank 1 on {HOST}: in step 2 (forward_backward) for " in reports[0]
    assert f"rank 0 on {HOST}: nothing heard of" in reports[0]
    assert f"rank 0 on {HOST}: in step 2 (save) for " in reports[1]
    assert f"rank 1 on {HOST}: nothing heard of" in reports[1]


class Unreachable:
    """A store behind a link that is cut."""

    def __getattr__(self, name):
        return lambda *given: threading.Event().wait(60)


class Closed:
    """A store whose process has ended."""

    asked = 0

    def __getattr__(self, name):
        def closed(*given):
            self.asked += 1
            raise dist.DistNetworkError("failed to recv, got 0 bytes")

        return closed


@pytest.mark.parametrize("store", [Unreachable(), Closed()])
def test_a_process_that_does_not_reach_the_store_ends_all_the_same(
    tmp_path, monkeypatch, caplog, hekaton_log, store
):
    monkeypatch.setattr(board, "ANSWERS", 0.2)
    hekaton_log.propagate = True
    where = Whereabouts()
    lonely = board.Board(HashStore(), rank=1, world_size=2)
    lonely._store = store
    ended, status = threading.Event(), []

    def end(with_status):
        status.append(with_status)
        ended.set()

    watched = hangs_are_shown(
        where, lonely, rank=1, world_size=2, seconds=0.4, abort=True, folder=tmp_path, end=end
    )
    with watched:
        where.at("data", step=1)
        where.at("data", step=2)
        assert ended.wait(40)
    assert status == [1]
    assert f"rank 1 on {HOST}: in step 2 (data) for " in caplog.text
    assert lonely.is_gone
    assert isinstance(store, Unreachable) or store.asked == 1  # torch prints a trace each time
