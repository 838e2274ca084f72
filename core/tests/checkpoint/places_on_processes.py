"""Each rank stands for a machine of its own: run on 3 processes by test_places.py."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk import places
from hekaton.checkpoint.disk import step_folders as storage
from hekaton.checkpoint.disk.places import Place, check_places
from hekaton.checkpoint.ranks import Ranks
from hekaton.errors import CheckpointError

WAIT = 0.6
RANK = int(os.environ["RANK"])


def run(folder: str) -> None:
    """Every case in one launch; what each rank was told is written to ``said-RANK.json``."""
    dist.init_process_group("gloo")
    places.machine = lambda: f"machine {RANK}"  # type: ignore[assignment]
    places.platform.node = lambda: f"host{RANK}"  # type: ignore[assignment]
    root, said = Path(folder), {}
    for name, (where, hidden) in {
        "shared": (root / "shared" / "checkpoint", 0.0),
        "seen late": (root / "late", WAIT / 2),
        "own disk of rank 2": (root / f"disk{RANK // 2}", 0.0),
        "own disks": (root / f"own{RANK}", 0.0),
        "in the way": (root / ("file" if RANK == 1 else "folder") / "checkpoint", 0.0),
    }.items():
        began = time.monotonic()
        with hidden_for(hidden):
            place = Place(name="the checkpoint folder", folder=where, shared=True, hint="the way on")
            said[name] = told(lambda place=place: check_places([place], Ranks.of(), wait=WAIT))  # type: ignore[misc]
        assert time.monotonic() - began < 10 * WAIT
    places.machine = lambda: "the same"  # type: ignore[assignment]
    own = Place(name="the checkpoint folder", folder=root / f"own{RANK}", shared=True)
    said["one machine"] = told(lambda: check_places([own], Ranks.of(), wait=WAIT))
    storage.check_all_there.__kwdefaults__["wait"] = WAIT
    said["saved"] = told(lambda: save(root / "saved"))
    said["saved apart"] = told(lambda: save(root / f"saved{RANK // 2}"))
    (root / f"said-{RANK}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def save(folder: Path) -> None:
    state = {"model": {f"weight{RANK}": torch.full((100,), float(RANK))}}
    CheckpointManager(folder, describe={}).save(1, state, {})


def told(action) -> str:  # type: ignore[no-untyped-def]
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def hidden_for(seconds: float) -> Iterator[None]:
    """As a cached listing of a network file system: what others wrote is not listed at first."""
    listed, end = Path.iterdir, time.monotonic() + seconds
    Path.iterdir = lambda self: iter(()) if time.monotonic() < end else listed(self)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Path.iterdir = listed  # type: ignore[method-assign]
