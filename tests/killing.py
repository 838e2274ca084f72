"""Kill work at one moment after another, in forked processes, to see what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

Watch = Callable[[Callable[[], None]], None]
"""Has a function called at every moment from now on, in this process."""


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Do the work in a forked process.

    :returns: what the work returned, as JSON carries it.
    :raises AssertionError: with the error of the work, or how the process ended.
    """
    status, said = _forked(work)
    assert status == 0, said or f"ended with status {status}"
    return said


def count_moments(watch: Watch, work: Callable[[], Any]) -> int:
    """How many moments the work has, done once in a forked process."""

    def counted() -> int:
        moments = 0

        def one_more() -> None:
            nonlocal moments
            moments += 1

        watch(one_more)
        work()
        return moments

    moments: int = in_a_fork(counted)
    return moments


def kill_at(moment: int, watch: Watch, work: Callable[[], Any]) -> None:
    """Do the work in a forked process that is killed (SIGKILL) when a moment comes; the first is 1.

    :raises AssertionError: the work ended, or failed, before the moment came.
    """

    def killed() -> None:
        left = moment

        def kill() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(kill)
        work()

    status, said = _forked(killed)
    assert os.WIFSIGNALED(status), f"not killed at moment {moment}: {said}"


def _forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """The wait status of a forked process, and the result or the error of the work."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], json.loads(text) if text else None
