"""A process that was started without standard streams, as by ``>&- 2>&-``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OPENS_A_FILE = """
import os, sys
from hekaton.streams import open_closed_streams
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hekaton", "--version"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "error: cannot write standard output, or a file: No space left on device\n",
    )
