"""Processes that cannot be one run are told so when they meet."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from hekaton.config.sections import CommSection
from hekaton.distributed import process_group, this_process
from hekaton.errors import ConfigError, HekatonError
from hekaton.failures import arrival
from hekaton.failures.arrival import meet
from hekaton.failures.board import Board
from hekaton.identity.together import together
from hekaton.testing import run_processes

HOST = socket.gethostname()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    return dist.HashStore()


def come(store: dist.Store, rank: int, world_size: int, *, seconds: float = 20.0) -> None:
    meet(
        store,
        Board(store, rank=rank, world_size=world_size),
        rank=rank,
        world_size=world_size,
        seconds=seconds,
    )


def in_thread(store: dist.Store, rank: int, world_size: int) -> tuple[threading.Thread, list[HekatonError]]:
    """A process that came before; the list gets what it ends with."""
    ended: list[HekatonError] = []

    def run() -> None:
        try:
            come(store, rank, world_size)
        except HekatonError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not store.check([f"hekaton/failures/host/{rank}"]):
        pass
    return thread, ended


def test_all_of_them_go_on(store: dist.Store) -> None:
    thread, ended = in_thread(store, 0, 2)
    come(store, 1, 2)
    thread.join(20)
    assert ended == []


def test_another_number_of_processes_on_one_machine_ends_both(store: dist.Store) -> None:
    thread, ended = in_thread(store, 1, 4)
    with pytest.raises(ConfigError) as raised:
        come(store, 2, 6)
    said = f"\n  number of processes (WORLD_SIZE): 4 on rank 1 ({HOST}), 6 on rank 2 ({HOST})"
    assert raised.value.message == f"the processes of this run cannot meet:{said}"
    thread.join(20)
    (of_first,) = ended
    assert of_first.exit_code == 2


def test_other_ways_to_connect_are_reported(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gloo, the one ends with a segmentation fault, and the other waits for it."""
    monkeypatch.delenv("TORCH_GLOO_LAZY_INIT", raising=False)
    thread, _ = in_thread(store, 1, 4)
    monkeypatch.setenv("TORCH_GLOO_LAZY_INIT", "1")
    monkeypatch.setattr(arrival.torch, "__version__", "9.9")
    with pytest.raises(ConfigError) as raised:
        come(store, 2, 4)
    version, gloo = raised.value.message.splitlines()[1:]
    assert version.startswith("  version of torch: ")
    assert version.endswith(f", 9.9 on rank 2 ({HOST})")
    assert gloo.endswith(f"(TORCH_GLOO_LAZY_INIT): not set on rank 1 ({HOST}), 1 on rank 2 ({HOST})")
    thread.join(20)


def test_a_rank_that_two_processes_have_ends_both(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, ended = in_thread(store, 1, 4)
    monkeypatch.setattr(arrival.os, "getpid", lambda: 1)
    with pytest.raises(ConfigError, match=f"two processes of this run have rank 1: on {HOST}, process "):
        come(store, 1, 4)
    thread.join(20)
    assert [error.exit_code for error in ended] == [2]


def test_those_that_do_not_come_are_named_by_all(store: dist.Store) -> None:
    for rank in (1, 2):
        with pytest.raises(
            ConfigError, match=r"3 of 4 processes have not connected within 0 s: ranks 0, 2, 3\n"
        ):
            come(store, rank, 4, seconds=0.0)


def test_processes_that_are_started_again_meet_whatever_their_agents_count(store, monkeypatch):
    """torchrun on another machine does not count a start that it makes because this one had to start again."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    boards = [Board(store, rank=rank, world_size=2) for rank in (0, 1)]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    first = threading.Thread(
        target=meet, args=(store, boards[1]), kwargs={"rank": 1, "world_size": 2, "seconds": 20}, daemon=True
    )
    first.start()
    end = time.monotonic() + 10
    while store.add("hekaton/arrived", 0) < 1 and time.monotonic() < end:
        time.sleep(0.01)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    meet(store, boards[0], rank=0, world_size=2, seconds=5)
    first.join(10)
    assert not first.is_alive()


def test_in_a_store_of_torchrun_processes_that_are_started_again_find_nothing_of_those_before(monkeypatch):
    """Or the failure that they were started again for would end them, too."""
    of_torchrun = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{of_torchrun.port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        monkeypatch.setattr(arrival, "_connections", {})
        opened = arrival.open_store(0, seconds=20)
        found.append(opened.check(["lost"]))
        opened.set("lost", "1")
    assert found == [False, False]


def meet_again_and_again(slow: int) -> None:
    """Run by the next test on two processes."""
    process = this_process()
    for _ in range(3):
        with process_group(process, CommSection(init_timeout_seconds=60), dump_folder="."):
            together(lambda: None)
            time.sleep(0.3 if process.rank == slow else 0.0)


@pytest.mark.parametrize("slow", [0, 1])
def test_processes_that_stay_meet_again_whoever_is_slower(slow: int, tmp_path: Path) -> None:
    """Rank 0 held the store of the meeting before while another rank was on its way to the next."""
    run_processes(__file__, "meet_again_and_again", processes=2, slow=slow, cwd=tmp_path)
