"""The connection of a pytest process to the server of test processes, which starts when it is first needed.

All workers of pytest-xdist find the same server: its folder has the name of their test run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from hekaton.testing.child import OF_THE_TESTS, SETTINGS, ProcessRequest
from hekaton.testing.folder import locked, server_folder
from hekaton.testing.server import command
from hekaton.testing.stack import STACK_TIME, write_stack

ANSWER_TIME = 60.0
"""Seconds for the server to answer."""
START_TIME = 600.0
"""Seconds for it to import everything, from a disk that may be far away."""

_session: tuple[int, socket.socket] | None = None  # with the process that opened it


class NoServer(Exception):
    """This request needs a fresh interpreter; the message says why."""


def fork(request: ProcessRequest) -> tuple[int, socket.socket]:
    """A forked process, and the connection that tells of its end and ends it when it is closed.

    :raises NoServer: where the environment has variables that take effect at the start of a process only.
    """
    _ensure_current()
    connection = _connected()
    answer = _ask(connection, dataclasses.asdict(request))
    if "pid" in answer:
        return answer["pid"], connection
    connection.close()
    if "fresh" in answer:
        raise NoServer(f"{answer['fresh']} is read when a process starts")
    raise AssertionError(answer.get("error") or f"the server of test processes has died:\n{_log()}")


def status_of(connection: socket.socket) -> int | None:
    """The status that the server tells, as ``subprocess`` gives it; None while the process is running."""
    connection.setblocking(False)
    try:
        line = connection.recv(4096)
    except BlockingIOError:
        return None
    if not line:
        raise AssertionError(f"the server of test processes has died:\n{_log()}")
    return int(json.loads(line)["status"])


def _ensure_current() -> None:
    """Connect this process to a server that has imported what is on disk."""
    global _session
    if _session is not None and _session[0] == os.getpid():
        with contextlib.suppress(OSError):
            if _ask(_session[1], {"current": True}) == {"changed": ""}:
                return
        _session[1].close()
    _session = (os.getpid(), _join_or_start())
    atexit.register(_session[1].close)


def _join_or_start() -> socket.socket:
    folder = server_folder()
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to another user"
        with locked(folder) as ours:
            if not ours:
                continue
            with contextlib.suppress(OSError):
                connection = _connected()
                if _ask(connection, {"current": True}) == {"changed": ""}:
                    return connection
                connection.close()
            return _start(folder)


def _start(folder: Path) -> socket.socket:
    address = folder / "socket"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        os.set_inheritable(listener.fileno(), True)
        arguments = command(listener.fileno(), str(folder))
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder / "log"), write, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        started = os.posix_spawn(sys.executable, arguments, OF_THE_TESTS | SETTINGS, file_actions=streams)
    os.waitpid(started, 0)  # it has forked itself: no child of this process is left
    connection = _connected()
    # It answers when it has imported everything.
    if not _ask(connection, {"current": True}, within=START_TIME):
        raise AssertionError(f"the server of test processes does not start:\n{_log()}")
    return connection


def _connected() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(server_folder() / "socket"))
    except OSError:
        connection.close()
        raise
    return connection


def _ask(
    connection: socket.socket, question: dict[str, Any], *, within: float | None = None
) -> dict[str, Any]:
    """:raises AssertionError: where no answer comes, with the server's stack; another one can then start."""
    within = within or ANSWER_TIME
    connection.settimeout(within)
    try:
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("rb", buffering=0) as stream:  # what comes after the line is left
            answer: dict[str, Any] = json.loads(stream.readline() or b"{}")
    except TimeoutError:
        _end_with_its_stack(connection)
        asked = " ".join([question["module"], *question["arguments"]]) if "module" in question else ""
        what = f"to start '{asked}'" if asked else "whether what it has imported is current"
        raise AssertionError(
            f"the server of test processes was asked {what}, did not answer in {within:g} s, and was ended:\n"
            f"{_log()}"
        ) from None
    return answer


def _end_with_its_stack(connection: socket.socket) -> None:
    """End the server at the other end, which writes its stack to the log."""
    # Without a file it has not begun.
    with connection, contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int((server_folder() / "pid").read_text(encoding="utf-8"))
        write_stack(pid)
        connection.settimeout(STACK_TIME)
        try:
            while connection.recv(4096):
                pass
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
        except ConnectionResetError:
            pass  # it has ended


def _log() -> str:
    try:
        return (server_folder() / "log").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
