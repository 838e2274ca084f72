"""``hekaton train`` on two ranks, of which the second has something else: run by test_differing_processes.py."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from hekaton.cli import main
from hekaton.failures import arrival

RANK = int(os.environ["RANK"])


@contextlib.contextmanager
def fewer_devices() -> Iterator[None]:
    """This process is the second of a machine that has one device."""
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.dict(os.environ, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2"),
    ):
        yield


def run(folder: str, cases: dict[str, list[list[str]]], ports: list[int]) -> None:
    """Each case in turn; status and console of this rank are written to ``said-RANK.json``.

    :param cases: the flags of each rank.
    """
    arrival.TELLS = 60  # no launcher ends a process that waits for one which failed before it
    os.environ["LOCAL_RANK"] = "0"  # each rank stands for a machine of its own
    os.environ["GROUP_RANK"] = str(RANK)
    said = {}
    for (name, flags), port in zip(cases.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        console = io.StringIO()
        fewer = fewer_devices() if name == "fewer devices" and RANK == 1 else contextlib.nullcontext()
        with contextlib.redirect_stderr(console), fewer:
            status = main(["train", str(Path(folder) / "run.toml"), *flags[RANK]])
        said[name] = [status, console.getvalue()]
        Path(folder, f"said-{RANK}.json").write_text(json.dumps(said))
