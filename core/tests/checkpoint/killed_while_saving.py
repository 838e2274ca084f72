"""Run by test_crash.py: saves are killed at one moment after another, in forked processes.

A moment is a piece of a file written (every fourth), or an operation on files or folders about to begin.
"""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import folder_at
from hekaton.checkpoint.disk.manifest import Manifest, check_sizes
from hekaton.checkpoint.tensors import dcp

killing: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "tests" / "killing.py")))

KEEP = 2
SCHEME = ""
"""In front of a path, to make it a URL."""


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((300,), value), "b": torch.full((5,), value)}}


def manager_of(folder: Path, **arguments: Any) -> CheckpointManager:
    where = folder_at(f"{SCHEME}{folder}")
    return CheckpointManager(where, **{"describe": {}, "keep_latest_k": KEEP, **arguments})


def on_moments(call: Callable[[], None]) -> None:
    """Have ``call`` called at every moment from now on."""
    operations = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in operations or (event == "open" and str(arguments[1]).startswith("w")):
            call()

    sys.addaudithook(hook)
    write = dcp._Checked.write
    pieces = count()

    def noticed(self: Any, data: Any) -> int:
        written = write(self, data)
        if next(pieces) % 4 == 0:
            call()
        return written

    dcp._Checked.write = noticed  # type: ignore[method-assign]


def saves(folder: Path) -> None:
    """A new step, which makes the oldest go; it again; one in place of an abandoned future; one more."""
    manager = manager_of(folder)
    manager.load(state(0.0))
    manager.save(3, state(3.0), {})
    manager.save(3, state(3.5), {})
    manager = manager_of(folder)
    manager.load(state(0.0), step=2)
    manager.save(3, state(-3.0), {})
    manager.save(4, state(4.0), {})


def resumed(folder: Path) -> dict[str, Any]:
    """What the next start finds (nothing half there with a manifest), and whether it can save and go on."""
    for manifest in folder.rglob("manifest.json"):
        check_sizes(manifest.parent, Manifest.from_json(manifest.read_text()).files)
    into = state(0.0)
    manager = manager_of(folder)
    loaded = manager.load(into)
    assert loaded is not None
    found = {"step": loaded.step, "values": sorted({v for t in into["model"].values() for v in t.tolist()})}
    manager.save(loaded.step + 1, state(99.0), {})
    again = manager_of(folder).load(into)
    assert again is not None
    assert again.step == loaded.step + 1
    assert into["model"]["b"].tolist() == [99.0] * 5
    whole = [path.parent.name for path in folder.glob("step-*/manifest.json")]
    return found | {"left": sorted(path.name for path in folder.iterdir()), "whole": sorted(whole)}


def run(folder: str, scheme: str, every: int) -> None:
    """Print what there is after each kill, of every so many moments, as JSON."""
    global SCHEME
    SCHEME = scheme
    logging.disable()
    root = Path(folder)
    before = root / "before"

    def two_steps() -> None:
        manager = manager_of(before)
        manager.save(1, state(1.0), {})
        manager.save(2, state(2.0), {})

    killing.in_a_fork(two_steps)
    where = root / "run"
    shutil.copytree(before, where)
    moments = killing.count_moments(on_moments, lambda: saves(where))
    outcomes = []
    for moment in range(1, moments + 1, every):
        shutil.rmtree(where)
        shutil.copytree(before, where)
        killing.kill_at(moment, on_moments, lambda: saves(where))
        outcomes.append(killing.in_a_fork(lambda: resumed(where)))
    print(json.dumps(outcomes))
