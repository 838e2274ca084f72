"""The threads of each process that ``hekaton.launch`` starts."""

import os

from hekaton.launch import torchrun
from hekaton.launch.torchrun import main, threads_of_each


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
