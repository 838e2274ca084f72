"""Files of a run with an object of JSON per line: appended to, and read as what anybody may have written."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from hekaton.checkpoint.disk.folders import open_file

MAX_LINE = 2**20
"""Bytes of a line: a longer one is none that a run wrote."""
_MAX_NUMBER = 2**53
"""Steps and seconds are below: floats count exactly up to it."""


def read_lines(file: Path) -> Generator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a regular file, each with its object; ``None`` for one that has none: it was cut off while
    it was written, is longer than ``MAX_LINE`` (and cut there), or no run wrote it.

    :raises OSError: when it is not there, or no regular file.
    """
    with open_file(file) as unbuffered, open(unbuffered.fileno(), "rb", closefd=False) as stream:
        while line := stream.readline(MAX_LINE):
            yield line, _object(line)
            while not line.endswith(b"\n") and (line := stream.readline(MAX_LINE)):
                pass  # the rest of a line that is too long


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that runs count in."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER


def append_line(file: Path, values: Mapping[str, Any]) -> None:
    """Append an object, in one write, so that readers see whole lines: not to what a link points to, and
    without waiting for somebody who reads a FIFO. Where the last line was cut off, the object gets a line of
    its own.

    :raises OSError: when the file cannot be written, or only a part of the line.
    """
    line = json.dumps(values, allow_nan=False).encode() + b"\n"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(file, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    finally:
        os.close(descriptor)


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
