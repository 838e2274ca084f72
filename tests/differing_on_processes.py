"""``hekaton train`` on two ranks, of which the second has something else: run by test_differing_processes.py."""

import contextlib
import io
import json
import os
from pathlib import Path

from hekaton.cli import main

RANK = int(os.environ["RANK"])


def run(folder: str, cases: dict[str, list[list[str]]], ports: list[int]) -> None:
    """Each case in turn; status and console of this rank are written to ``said-RANK.json``.

    :param cases: the flags of each rank.
    """
    os.environ["LOCAL_RANK"] = "0"  # each rank stands for a machine of its own
    os.environ["GROUP_RANK"] = str(RANK)
    said = {}
    for (name, flags), port in zip(cases.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        console = io.StringIO()
        with contextlib.redirect_stderr(console):
            status = main(["train", str(Path(folder) / "run.toml"), *flags[RANK]])
        said[name] = [status, console.getvalue()]
        Path(folder, f"said-{RANK}.json").write_text(json.dumps(said))
