"""The end of a process that is one of several: with its own status, whatever libraries do at the end.

Threads of gloo and of the store still run when the interpreter is taken down, while other processes close
their connections: a process that is aborted then (SIGABRT) has a launcher report that in place of the status
of an error, or of success.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from hekaton.environment import among_others


@dataclass
class Ending:
    """:param status: what the process ends with; an exception that nobody catches has 1."""

    status: int = 1


@contextlib.contextmanager
def end_with_this_status() -> Iterator[Ending]:
    """End a process that is one of several when its threads and ``atexit`` hooks are done, and before the
    interpreter is taken down.

    Entered before anything else registers a hook, because the first one runs last.
    """
    ending = Ending()
    atexit.register(_end, ending)
    yield ending


def _end(ending: Ending) -> None:
    if among_others():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(ending.status)
