"""The threads of each process that ``hekaton.launch`` starts."""

import os
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError

from hekaton.launch import torchrun
from hekaton.launch.torchrun import first_failure, main, threads_of_each


def test_cores_are_shared_out_where_nobody_says_how_many_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torchrun, "cores", lambda: 26)
    assert [threads_of_each(processes) for processes in (1, 2, 8, 64)] == [0, 13, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_of_each(2) == 0


def test_processes_are_started_with_their_share_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "x")  # put back at the end
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torchrun, "cores", lambda: 26)
    seen = []
    monkeypatch.setattr(
        "torch.distributed.run.run", lambda options: seen.append(os.environ["OMP_NUM_THREADS"])
    )
    assert main(["--standalone", "--nproc_per_node", "4", "-m", "hekaton.train"]) == 0
    assert seen == ["6"]
    assert capsys.readouterr().err == "OMP_NUM_THREADS = 6: 26 cores, 4 processes\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RendezvousTimeoutError(),
            "not all 2 machines have come to a:29400 in time (--rdzv_conf=join_timeout=N, ",
        ),
        (RendezvousConnectionError("no\nstore"), "cannot reach the machine of a:29400: no\n"),
    ],
)
def test_machines_that_do_not_come_are_an_error_without_a_traceback(error, said, monkeypatch, capsys):
    """As after a link is cut, at the next start by ``--max-restarts``."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(options):
        raise error

    monkeypatch.setattr("torch.distributed.run.run", run)
    machines = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_endpoint=a:29400"]
    assert main([*machines, "-m", "hekaton.train"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        ({0: (1, 100), 1: (-9, 103)}, 1),  # rank 0 has said that its collective broke
        ({0: (2, 100), 1: (-9, 131)}, 0),  # torchrun has killed rank 1
        ({0: (-15, 101), 1: (3, 100)}, 1),
        ({0: (-11, 100), 1: (-15, 100)}, 0),
    ],
)
def test_the_process_that_was_killed_is_the_cause(failures, first):
    class Failed(Exception):
        def __init__(self):
            self.failures = {r: SimpleNamespace(exitcode=c, timestamp=t) for r, (c, t) in failures.items()}

        def get_first_failure(self):
            return min(self.failures.items(), key=lambda one: one[1].timestamp)

    assert first_failure(Failed())[0] == first
