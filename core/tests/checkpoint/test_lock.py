"""Two runs on one folder: the second is kept off, and what a dead run leaves keeps nobody off."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk import lock
from hekaton.checkpoint.disk.folders import Folder
from hekaton.checkpoint.disk.lock import Holder
from hekaton.errors import CheckpointError
from hekaton.testing import start_function
from hekaton.testing.process import RunningProcess

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Messages = Callable[[], list[str]]

OTHER = Path(__file__).with_name("other_process.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE", 0.01)
    monkeypatch.setattr(lock, "SILENCE", 0.5)


@pytest.fixture
def other(where: Folder, tmp_path: Path) -> Iterator[RunningProcess]:
    """Another process, which has the lock, and ends when there is a file ``end``."""
    with start_function(OTHER, "lock", folder=str(where), until=str(tmp_path / "end")) as process:
        process.wait_for("locked\n")
        yield process


@pytest.fixture
def child(where: Folder, tmp_path: Path) -> Iterator[RunningProcess]:
    """Likewise, a child of this process."""
    with start_function(OTHER, "lock", folder=str(where), until=str(tmp_path / "end"), fresh=True) as process:
        process.wait_for("locked\n")
        yield process


def put(folder: Path, holder: Holder) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "new").write_text(json.dumps(asdict(holder)))
    (folder / "new").rename(folder / "lock.json")


def of_another_host(*, clock: timedelta = timedelta(0)) -> Holder:
    """:param clock: how far that host's clock is from ours."""
    beat = (datetime.now(UTC) + clock).isoformat()
    return replace(Holder.me(), host="node-7", machine="another", beat=beat)


@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_a_second_run_is_refused_before_it_writes(
    other: RunningProcess, folder: Path, where: Folder, manager: Make
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError) as error:
        manager().lock()
    assert re.fullmatch(
        rf"the checkpoint folder {where} is in use by another run: process {other.pid} on \S+, since \S+\n"
        r"  stop that run, or choose another job\.dump_folder or checkpoint\.folder",
        str(error.value),
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_a_run_that_ended_leaves_no_lock(
    other: RunningProcess, folder: Path, manager: Make, messages: Messages, tmp_path: Path
) -> None:
    assert (folder / "lock.json").exists()
    (tmp_path / "end").touch()
    assert other.wait(60) == 0
    assert not (folder / "lock.json").exists()
    mine = manager()
    mine.lock()
    mine.close()
    assert not (folder / "lock.json").exists()
    assert messages() == []


@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_the_lock_of_a_killed_run_is_taken_over(
    child: RunningProcess, where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # gone, but for its entry among the processes
    mine = manager()
    mine.lock()
    (message,) = messages()
    assert re.fullmatch(
        rf"{where}: the run that wrote here \(process {child.pid} on \S+, since \S+\) has ended: taking over its lock",
        message,
    )
    mine.save(1, parts(1.0), {})
    mine.close()


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_lock(
    folder: Path, manager: Make, messages: Messages
) -> None:
    put(folder, replace(Holder.me(), started="12345", token="another"))
    mine = manager()
    mine.lock()
    mine.close()
    assert "has ended: taking over its lock" in messages()[0]


@pytest.mark.parametrize("hours", [-2, 0, 2])
def test_a_lock_renewed_on_another_host_is_respected(hours: int, folder: Path, manager: Make) -> None:
    """Whatever its clock says: its signs of life are compared with each other."""
    clock = timedelta(hours=hours)
    holder = of_another_host(clock=clock)
    put(folder, holder)
    stop = threading.Event()

    def lives() -> None:
        while not stop.wait(0.05):
            put(folder, replace(holder, beat=(datetime.now(UTC) + clock).isoformat()))

    living = threading.Thread(target=lives)
    living.start()
    try:
        with pytest.raises(CheckpointError, match=r"in use by another run: process .* on node-7, since"):
            manager().lock()
    finally:
        stop.set()
        living.join()


def test_a_lock_not_renewed_on_another_host_is_taken_over(
    folder: Path, where: Folder, manager: Make, messages: Messages
) -> None:
    put(folder, of_another_host())
    mine = manager()
    mine.lock()
    mine.close()
    waiting, taken = messages()
    assert waiting.startswith(f"{where}: waiting up to 0 s for the lock to be renewed by process ")
    assert "on node-7" in taken
    assert taken.endswith("has ended: taking over its lock")


GARBAGE = {
    "": "Expecting value",
    "{": "Expecting property name",
    "[" * 60_000: "it is nested too deeply",
    '{"pid": 1}': "it does not hold what a lock holds",
    "[]": "it does not hold what a lock holds",
    "x" * 100_000: "it has 100,000 bytes, more than 65,536",
    b"\xff\xfe\x00": "codec can't decode",
}


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_lock_that_no_run_wrote_is_replaced(
    content: str | bytes, folder: Path, where: Folder, manager: Make, messages: Messages
) -> None:
    folder.mkdir(parents=True)
    (folder / "lock.json").write_bytes(content.encode() if isinstance(content, str) else content)
    mine = manager()
    mine.lock()
    mine.close()
    (message,) = messages()
    assert message.startswith(f"{where}: taking over lock.json, which no run wrote: ")
    assert GARBAGE[content] in message


WRONG = {
    "beat": [None, 1, 2.5, "", [], {}, "yesterday", "2026-13-45", "x" * 2000, "\x1b[2J"],
    "pid": [None, "1", 1.0, -1, 0, True, 2**70],
    "host": [None, 7, "x" * 2000, "a\nb"],
    "since": [None, 0],
    "machine": [None, ["x"]],
    "started": [None, 5],
    "token": [None, 3],
}


@pytest.mark.parametrize("where", ["disk"], indirect=True)
@pytest.mark.parametrize("field", WRONG)
def test_a_lock_with_a_field_of_another_type_or_form_is_replaced(
    field: str, folder: Path, manager: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 0.01)
    folder.mkdir(parents=True)
    for value in WRONG[field]:
        content = {**asdict(of_another_host()), field: value}
        (folder / "lock.json").write_text(json.dumps(content))
        mine = manager()
        mine.lock()
        mine.close()
        assert not (folder / "lock.json").exists()


def test_a_run_that_lost_its_lock_stops_writing(folder: Path, manager: Make, parts: Parts) -> None:
    mine = manager()
    mine.lock()
    mine.save(1, parts(1.0), {})
    put(folder, of_another_host())
    with pytest.raises(CheckpointError, match=r"was taken over by another run: process .* on node-7, since"):
        mine.save(2, parts(2.0), {})
    mine.close()
    assert sorted(path.name for path in folder.iterdir()) == ["lock.json", "step-1"]
    assert json.loads((folder / "lock.json").read_text())["host"] == "node-7"


def test_when_two_runs_take_the_lock_at_once_one_is_refused(
    folder: Path, manager: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = lock.FolderLock._write

    def overtaken(self: lock.FolderLock, holder: Holder) -> None:
        write(self, holder)
        put(folder, replace(of_another_host(), machine=holder.machine, pid=os.getppid(), started=parent))

    parent = lock._started(os.getppid())
    assert parent is not None
    monkeypatch.setattr(lock.FolderLock, "_write", overtaken)
    with pytest.raises(CheckpointError, match=r"in use by another run: .* on node-7"):
        manager().lock()


def test_a_held_lock_is_renewed(folder: Path, manager: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.02)
    mine = manager()
    mine.lock()
    seen = set()
    end = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(json.loads((folder / "lock.json").read_text())["beat"])
        time.sleep(0.005)
    mine.close()
    assert len(seen) == 3


def test_an_earlier_manager_of_this_process_is_no_other_run(manager: Make, messages: Messages) -> None:
    first, second = manager(), manager()
    first.lock()
    second.lock()
    first.close()
    second.close()
    assert messages() == []
