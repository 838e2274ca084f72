"""A process that is one of several ends with the status of its run, whatever happens when it is taken down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, sys, threading, time
from hekaton.__main__ import run

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

def work():
    time.sleep(0.1)
    atexit.register(print, "hook")
    print("thread")

kept = Aborts()
threading.Thread(target=work).start()
sys.exit(run())
"""


@pytest.mark.parametrize(
    ("arguments", "processes", "status"),
    [
        (["no_such_verb"], "2", 2),
        (["--version"], "2", 0),
        (["--version"], "1", -signal.SIGABRT),
    ],
    ids=["an error", "success", "alone"],
)
def test_a_library_that_aborts_at_the_end_changes_no_status(
    arguments: list[str], processes: str, status: int
) -> None:
    """Alone, a process ends as Python ends it."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.splitlines()[-2:] == ["thread", "hook"]
    assert status != 2 or "error: unknown" in ended.stderr
