"""Saving in the background: the state of the moment, an error that is heard, a save that is waited for."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.runs.background import BackgroundSaves
from hekaton.checkpoint.tensors import dcp
from hekaton.checkpoint.tensors.staging import Staging
from hekaton.errors import CheckpointError
from hekaton.testing import run_processes, start_function

Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]

IN_THE_WAY = "(File exists|Not a directory)"
"""What a disk says where a file has the name of a folder."""
PROCESSES = Path(__file__).with_name("background_on_processes.py")
OTHER = Path(__file__).with_name("other_process.py")


class Saved:
    """What a run is told of saves that are whole."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, folder: Path) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert (folder / "manifest.json").is_file()
        self.steps.append(step)


@pytest.fixture
def saved() -> Saved:
    return Saved()


@pytest.fixture
def saves(folder: Path, saved: Saved) -> BackgroundSaves:
    return BackgroundSaves(CheckpointManager(folder, describe={}), pinned=False, saved=saved)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until the gate is open."""
    gate = threading.Event()
    write = dcp.write

    def gated(*arguments: Any) -> Any:
        assert gate.wait(30)
        return write(*arguments)

    monkeypatch.setattr(dcp, "write", gated)
    yield gate
    gate.set()


def polled(saves: BackgroundSaves, until: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        saves.poll()
        time.sleep(0.01)


def test_a_save_writes_the_state_at_its_call(
    saves: BackgroundSaves, saved: Saved, gate: threading.Event, folder: Path, parts: Parts
) -> None:
    state = parts(1.5)
    info = {"steps": [1, 2]}
    saves.start(5, state, info, good=True)
    for tensors in state.values():
        for tensor in tensors.values():
            tensor.fill_(-7)
    info["steps"].append(3)
    saves.poll()
    assert saved.steps == []
    gate.set()
    polled(saves, lambda: bool(saved.steps))
    assert saved.steps == [5]
    into = parts(0.0)
    loaded = CheckpointManager(folder, describe={}).load(into)
    assert loaded is not None
    assert loaded.info == {"steps": [1, 2]}
    assert {v for t in into.values() for x in t.values() for v in x.flatten().tolist()} == {1.5}


def test_memory_of_copies_is_reused(parts: Parts) -> None:
    staging = Staging(pinned=False)
    first = staging.copy(parts(1.0))["model"]["norm.weight"]
    second = staging.copy(parts(2.0))["model"]["norm.weight"]
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [2.0] * 4
    other = staging.copy({"model": {"norm.weight": torch.ones(3, dtype=torch.bfloat16)}})
    assert torch.equal(other["model"]["norm.weight"], torch.ones(3, dtype=torch.bfloat16))


def test_a_step_that_is_not_good_is_marked(saves: BackgroundSaves, folder: Path, parts: Parts) -> None:
    saves.start(5, parts(1.5), {}, good=False)
    saves.wait()
    assert json.loads((folder / "step-5" / "manifest.json").read_text())["good"] is False


def test_a_save_that_is_still_being_written_is_waited_for(
    saves: BackgroundSaves, saved: Saved, gate: threading.Event, parts: Parts, caplog: Any
) -> None:
    caplog.set_level("INFO", logger="hekaton")
    saves.start(5, parts(5.0), {}, good=True)
    threading.Timer(0.3, gate.set).start()
    saves.start(6, parts(6.0), {}, good=True)
    assert saved.steps == [5]
    saves.end(None)
    assert saved.steps == [5, 6]
    told = [record.getMessage() for record in caplog.records if record.name == "hekaton"]
    assert "waiting for step-5, which is still being written" in told
    (line,) = [line for line in told if "step-6:" in line]
    stalled = float(line.split("; stalled training ")[1].removesuffix(" s"))
    assert 0.25 < stalled < 5
    (line,) = [line for line in told if "step-5:" in line]
    assert float(line.split("; stalled training ")[1].removesuffix(" s")) < 0.25


def test_an_error_is_raised_at_the_next_step(saves: BackgroundSaves, folder: Path, parts: Parts) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    saves.start(5, parts(5.0), {}, good=True)
    with pytest.raises(CheckpointError, match=f"cannot write the checkpoint {folder}/step-5: {IN_THE_WAY}"):
        polled(saves, lambda: False)
    saves.poll()
    saves.end(None)


def test_an_error_of_the_last_save_is_raised(saves: BackgroundSaves, folder: Path, parts: Parts) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    saves.start(5, parts(5.0), {}, good=True)
    with pytest.raises(CheckpointError, match=IN_THE_WAY):
        saves.end(None)


def test_an_error_is_raised_by_the_next_save(
    saves: BackgroundSaves, folder: Path, parts: Parts, caplog: Any
) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    saves.start(5, parts(5.0), {}, good=True)
    with pytest.raises(CheckpointError, match=f"step-5: {IN_THE_WAY}"):
        saves.start(6, parts(6.0), {}, good=True)
    saves.end(RuntimeError())
    assert not [r for r in caplog.records if r.levelname == "ERROR"], "it is told once"


def test_a_failed_save_is_logged_when_the_run_has_failed(
    saves: BackgroundSaves, folder: Path, parts: Parts, caplog: Any
) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()
    saves.start(5, parts(5.0), {}, good=True)
    saves.end(RuntimeError("what ended the run"))
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert re.fullmatch(f"cannot write the checkpoint {folder}/step-5: {IN_THE_WAY}", message)


def test_a_run_that_ends_early_finishes_the_save(
    saves: BackgroundSaves, saved: Saved, gate: threading.Event, parts: Parts
) -> None:
    saves.start(5, parts(5.0), {}, good=True)
    threading.Timer(0.2, gate.set).start()
    saves.end(KeyboardInterrupt())
    assert saved.steps == [5]


@pytest.mark.parametrize(
    "signals", [[signal.SIGKILL], [signal.SIGINT, signal.SIGINT]], ids=["killed", "interrupted"]
)
def test_a_process_that_dies_while_it_writes_leaves_the_older_step(
    folder: Path, signals: list[signal.Signals]
) -> None:
    """Killed; or interrupted twice, at its work and while it waits for the save."""
    with start_function(OTHER, "save", folder=str(folder)) as process:
        for expected, number in zip(["written\n", "waits\n"], signals, strict=False):
            process.wait_for(expected)
            process.send_signal(number)
        process.wait(60)
    assert (folder / "step-2" / ".metadata").exists()
    into = {"model": {"a": torch.zeros(1000)}}
    loaded = CheckpointManager(folder, describe={}).load(into)
    assert loaded is not None
    assert loaded.step == 1
    assert into["model"]["a"].unique().tolist() == [1.0]


def test_on_two_processes(tmp_path: Path) -> None:
    run_processes(PROCESSES, "on_processes", processes=2, timeout=100, folder=str(tmp_path))
