"""The folder of a server of test processes: its socket, its lock, and what it prints."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

_RUN = uuid.uuid4().hex


@functools.cache  # whatever a test makes of the folder of temporary files
def server_folder() -> Path:
    """That of this test run, the same for all workers of pytest-xdist."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", _RUN)
    key = hashlib.sha256(f"{run} {sys.executable} {sys.prefix}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"hekaton-{os.getuid()}-{key}")


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a server's folder; false when the folder went while waiting for it, and where another
    process has the lock and it is not waited for."""
    path = folder / "lock"
    try:
        file = path.open("w")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            there = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            there = False
        yield there
