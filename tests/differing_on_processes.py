"""``hekaton train`` on two ranks, of which the second has something else: run by test_differing_processes.py."""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from hekaton.cli import main
from hekaton.failures import arrival

RANK = int(os.environ["RANK"])
LATE = {"no such model": 0, "no such model on the first": 1}
"""The rank that comes when the other one has failed already."""


@contextlib.contextmanager
def fewer_devices() -> Iterator[None]:
    """This process is the second of a machine that has one device."""
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.dict(os.environ, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"),
    ):
        yield


@contextlib.contextmanager
def other_settings() -> Iterator[None]:
    """An attention kernel is switched off in this process, and denormal numbers are zero."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def modules_of(folder: str) -> Iterator[None]:
    """A folder of modules for this rank alone; what is imported is forgotten again."""
    with patch.object(sys, "path", [str(Path(folder, f"modules{RANK}")), *sys.path]):
        yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(folder):
            del sys.modules[name]


OF_SECOND = {"fewer devices": fewer_devices, "settings": other_settings}
"""What the second rank has of its own beside flags and files."""


@contextlib.contextmanager
def noted(file: Path) -> Iterator[None]:
    """Write a file when this process says that it waits for others, having failed."""
    say = arrival.say_it_waits

    def say_and_note(rank: int, error: Exception) -> None:
        say(rank, error)
        file.touch()

    with patch.object(arrival, "say_it_waits", say_and_note):
        yield


def wait_for(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)


def run(folder: str, cases: dict[str, list[list[str]]], ports: list[int]) -> None:
    """Each case in turn; status and console of this rank are written to ``said-RANK.json``.

    :param cases: the flags of each rank.
    """
    arrival.TELLS = 0.3  # no launcher ends a process that waits for one which failed before it
    os.environ["LOCAL_RANK"] = "0"  # each rank stands for a machine of its own
    os.environ["GROUP_RANK"] = str(RANK)
    said = {}
    for (name, flags), port in zip(cases.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        console = io.StringIO()
        waits = Path(folder, f"{name} waits")
        if LATE.get(name) == RANK:
            wait_for(waits)
        own = OF_SECOND.get(name, contextlib.nullcontext) if RANK == 1 else contextlib.nullcontext
        with contextlib.redirect_stderr(console), own(), noted(waits), modules_of(folder):
            status = main(["train", str(Path(folder) / "run.toml"), *flags[RANK]])
        said[name] = [status, console.getvalue()]
        Path(folder, f"said-{RANK}.json").write_text(json.dumps(said))
