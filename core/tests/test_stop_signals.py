"""Signals of a run: what they are watched by ends with the run."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from hekaton.control import RunControl
from hekaton.stop_signals import stop_on_signals


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_was_forked_in_a_run_keeps_its_end_waiting_for_nothing() -> None:
    """As those that read data, which an error leaves alive until the process ends."""
    reading, writing = os.pipe()
    with stop_on_signals(RunControl(), limit=0):
        forked = os.fork()
        if not forked:
            time.sleep(30)
            os.write(writing, b"its end")
            os._exit(0)
    waited_for, _, _ = select.select([reading], [], [], 0)
    os.kill(forked, signal.SIGKILL)
    os.waitpid(forked, 0)
    os.close(reading)
    os.close(writing)
    assert not waited_for
