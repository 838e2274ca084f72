"""Signals of a run: what they are watched by ends with the run."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from hekaton.control import RunControl
from hekaton.errors import INTERRUPTED
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


def test_a_signal_does_not_wait_for_ever_for_a_plugin_that_hangs(tmp_path) -> None:
    (tmp_path / "hangs.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    code = "from hekaton import stop_signals\nstop_signals.IMPORTED = 0.0\n"
    code += "with stop_signals.signals_wait():\n    import hangs"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "error: received SIGINT before the run, in " in said
    assert "hangs.py, line 3" in said
