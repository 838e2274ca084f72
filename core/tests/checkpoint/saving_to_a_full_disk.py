"""Run by test_crash.py on a small file system of its own, which is filled up but for some pages.

Each time a save meets the full disk a little later: in the tensors, their metadata, the manifest.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import sys
from pathlib import Path

import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.errors import CheckpointError


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a": torch.full((3000,), value), "b": torch.full((5,), value)}}


def main(disk: Path) -> None:
    logging.disable()
    folder = disk / "checkpoint"
    CheckpointManager(folder, describe={}).save(1, state(1.0), {})
    outcomes = []
    for free in range(20):
        with (disk / "filler").open("wb") as filler:
            pages = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize // mmap.PAGESIZE
            filler.write(bytes((pages - free) * mmap.PAGESIZE))
        saver = CheckpointManager(folder, describe={}, keep_latest_k=1)
        saver.load(state(0.0))
        try:
            saver.save(2, state(2.0), {})
            said = ""
        except CheckpointError as error:
            said = error.message
        (disk / "filler").unlink()
        into = state(0.0)
        loaded = CheckpointManager(folder, describe={}).load(into)
        assert loaded is not None
        assert into["model"]["a"].unique().tolist() == [float(loaded.step)]
        outcomes.append([loaded.step, said, sorted(path.name for path in folder.iterdir())])
        if not said:
            break
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
