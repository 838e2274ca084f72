"""What another process does with a checkpoint folder, for the tests of locks and of saves in the background."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import folder_at
from hekaton.checkpoint.runs.background import BackgroundSaves
from hekaton.checkpoint.tensors import dcp


def lock(folder: str, until: str) -> None:
    """Hold the lock until there is a file, then end as a program does."""
    CheckpointManager(folder_at(folder), describe={}).lock()
    print("locked", flush=True)
    while not Path(until).exists():
        time.sleep(0.01)
    sys.exit(0)


def save(folder: str) -> None:
    """One step, and another one that is written without an end, while the process is at its own work."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    saves = BackgroundSaves(CheckpointManager(Path(folder), describe={}), pinned=False, saved=lambda *_: None)
    saves.start(1, {"model": {"a": torch.full((1000,), 1.0)}}, {}, good=True)
    saves.wait()
    storage = dcp.save

    def slow(*arguments: Any, **keywords: Any) -> None:
        storage(*arguments, **keywords)
        print("written", flush=True)
        time.sleep(60)

    dcp.save = slow  # type: ignore[assignment]
    saves.start(2, {"model": {"a": torch.full((1000,), 2.0)}}, {}, good=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt as e:
        print("waits", flush=True)
        saves.end(e)
