"""Run by test_draws.py: check every draw."""

import contextlib
import io
import json
from pathlib import Path

from hekaton.cli import main


def check_all(folder: str) -> None:
    """What ``hekaton config check`` says of every case in ``cases.json``, to ``said.json``: status and words."""
    said = {}
    for name, case in json.loads(Path(folder, "cases.json").read_text()).items():
        errors = io.StringIO()
        words = ["config", "check", *case["flags"], "--world_size", str(case["processes"])]
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(words)
        said[name] = (status, errors.getvalue())
    Path(folder, "said.json").write_text(json.dumps(said))
