"""One real process of a test: forked from the warm server, or a fresh interpreter."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hekaton.testing.child import ProcessRequest
from hekaton.testing.stack import STACK_TIME, write_stack

HAS_FORK = hasattr(os, "fork") and sys.platform != "darwin"
"""Frameworks of macOS do not survive a fork."""

FRESH: Counter[str] = Counter()
"""Why processes were fresh interpreters, which take seconds longer to start, and how many were."""


class RunningProcess:
    """A process of its own group, whose standard streams go to files.

    A context manager: at its end the process is killed, if it is still running, with its group.
    """

    def __init__(self, request: ProcessRequest, *, fresh: bool = False) -> None:
        """Start it.

        :param fresh: in a fresh interpreter. So it is as well where there is no fork, and where the
            environment has a variable that takes effect at the start of a process only.
        """
        self.stdout_file, self.stderr_file = Path(request.stdout), Path(request.stderr)
        self.stdout_file.touch()
        self.stderr_file.touch()
        self.why_fresh = "asked for" if fresh else "" if HAS_FORK else "this platform has no fork"
        self._connection: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self.returncode: int | None = None
        if not self.why_fresh:
            from hekaton.testing import client

            try:
                self.pid, self._connection = client.fork(request)
            except client.NoServer as e:
                self.why_fresh = str(e)
        if self.why_fresh:
            FRESH[self.why_fresh] += 1
            self._popen = _interpreter(request)
            self.pid = self._popen.pid

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self.stdout_file.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self.stderr_file.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            if self._popen is not None:
                self.returncode = self._popen.poll()
            elif self._connection is not None:
                from hekaton.testing import client

                self.returncode = client.status_of(self._connection)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        :param timeout: in seconds.
        :raises AssertionError: when it is not done by then, with its output and its stack.
        """
        _until(lambda: self.poll() is not None, timeout)
        if self.returncode is None:
            self.show_stack()
            raise AssertionError(f"process {self.pid} is not done after {timeout:g} s:\n{self.output()}")
        return self.returncode

    def wait_for(self, text: str, *, times: int = 1, timeout: float = 60.0) -> None:
        """Wait until it has written a text so many times.

        :param timeout: in seconds.
        :raises AssertionError: when it has not by then, or has ended without.
        """
        _until(lambda: self.poll() is not None or self.output().count(text) >= times, timeout)
        if self.output().count(text) < times:
            self.show_stack()
            raise AssertionError(f"process {self.pid} has not written {text!r}:\n{self.output()}")

    def output(self) -> str:
        """Both streams, standard output first."""
        return self.stdout + self.stderr

    def send_signal(self, number: int) -> None:
        """Send a signal to it, as to any process; nothing where it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def show_stack(self) -> None:
        """Have it write the stacks of all its threads to its standard error, which ends it."""
        if self.poll() is None:
            write_stack(self.pid)
            _until(lambda: self.poll() is not None, STACK_TIME)

    def close(self) -> None:
        """Kill it and its group, if it is running.

        :raises AssertionError: where the server of test processes has died, which knew.
        """
        try:
            running = self.poll() is None
        except AssertionError:
            self._kill()
            raise
        if running:
            self._kill()
            _until(lambda: self.poll() is not None, STACK_TIME)
        if self._connection is not None:
            self._connection.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def __enter__(self) -> RunningProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _interpreter(request: ProcessRequest) -> subprocess.Popen[bytes]:
    action = ["-W", request.warnings] if request.warnings else []
    with open(request.stdout, "ab") as stdout, open(request.stderr, "ab") as stderr:
        return subprocess.Popen(
            [sys.executable, *action, "-X", "faulthandler", "-m", request.module, *request.arguments],
            env=request.environment,
            cwd=request.cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=0,
        )


def _until(holds: Callable[[], bool], timeout: float) -> None:
    end = time.monotonic() + timeout
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
