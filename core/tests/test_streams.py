"""A process that was started without standard streams, as by ``>&- 2>&-``."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPENS_A_FILE = """
import os, sys
from hekaton.cli.streams import open_closed_streams
open_closed_streams()
os.write(2, b"of a library")
print("of ours", file=sys.stderr)
with open("file", "w") as file:
    assert file.fileno() > 2
"""


@pytest.mark.parametrize(
    "words", [["-m", "hekaton", "--version"], ["-c", OPENS_A_FILE]], ids=["status", "places"]
)
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_process_without_standard_streams_ends_well(tmp_path, closed, words):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, *words]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0
    assert (tmp_path / "file").exists() == (words[0] == "-c")
    if words[0] == "-c":
        assert (tmp_path / "file").read_bytes() == b""
