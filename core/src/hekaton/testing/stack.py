"""Where a process is that does not answer."""

from __future__ import annotations

import contextlib
import os
import signal

STACK_TIME = 10.0
"""Seconds for a process to write its stack."""


def write_stack(pid: int) -> None:
    """Have a process write the stacks of all its threads to its standard error, which ends it; nothing where
    it has ended. Its ``faulthandler`` is enabled."""
    with contextlib.suppress(ImportError, AttributeError, PermissionError, ProcessLookupError):
        import resource  # not on every platform, like prlimit

        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))  # faulthandler ends with an abort
    for number in (signal.SIGABRT, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
