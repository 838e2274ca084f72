"""The server of test processes: it has imported everything, and forks one process for each request.

Python's own ``multiprocessing`` has a fork server, too, which lacks what tests need: its processes keep it
alive when pytest is killed, each of them imports the main module of pytest, the workers of pytest-xdist
cannot share one, and it cannot be replaced when a module changes.

It speaks lines of JSON over a Unix socket. A process lives as long as its connection: a client that closes
it, or dies, kills the process and its group. The server ends with its last client.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from hekaton.testing import preload
from hekaton.testing.child import ProcessRequest, become, read_at_import
from hekaton.testing.folder import locked

FIRST_CLIENT = 60.0
"""Seconds for the first client to come."""
NEXT_CLIENT = 1.0
"""Seconds for a client to come that has the folder's lock while the server would leave."""


def main(listener: int, folder: str, without: str) -> None:
    """Serve until the last client is gone.

    In a forked process this returns when it has become what was asked for, and run it.

    :param listener: file descriptor of the socket to serve on.
    :param without: modules not to import here, separated by commas: their import starts threads.
    """
    Path(folder, "pid").write_text(str(os.getpid()), encoding="utf-8")
    faulthandler.enable()
    since, environment = time.time(), dict(os.environ)
    culprit = preload.preload(set(without.split(",")))
    if culprit:
        _start_anew(listener, folder, ",".join(filter(None, (without, culprit))))
    sources = preload.Sources(since=since)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=listener) as serving:
        server = _Server(serving, Path(folder), sources=sources, environment=environment)
        request = server.serve()
    if request is not None:
        become(request)


def command(listener: int, folder: str, without: str = "") -> list[str]:
    """The command line of a server, which goes on in a session of its own while the command ends."""
    # The current folder is that of whoever asked first, and is no place to import from.
    code = (
        "import os, sys; os.fork() and os._exit(0); os.setsid(); "
        "sys.path[:] = [entry for entry in sys.path if entry]; "
        f"from hekaton.testing.server import main; main({listener}, {folder!r}, {without!r})"
    )
    return [sys.executable, "-c", code]


def _start_anew(listener: int, folder: str, without: str) -> None:
    print(f"started anew without {without}: importing it starts a thread", file=sys.stderr, flush=True)
    os.set_inheritable(listener, True)
    os.execv(sys.executable, command(listener, folder, without))


class _Server:
    def __init__(
        self,
        listener: socket.socket,
        folder: Path,
        *,
        sources: preload.Sources,
        environment: dict[str, str],
    ) -> None:
        self.listener, self.folder, self.sources = listener, folder, sources
        self.address = os.stat(folder / "socket").st_ino
        self.environment = environment
        self.clients: dict[socket.socket, int] = {}  # and the process of each, while it is running, or 0
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.ended, wake = socket.socketpair()
        for end in (self.ended, wake):
            end.setblocking(False)
        self.wake = wake
        self.selector.register(self.ended, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> ProcessRequest | None:
        """A request, in the process that was forked for it; None when no client is left."""
        served = False
        while True:
            events = self.selector.select(NEXT_CLIENT if served and not self.clients else FIRST_CLIENT)
            for key, _ in events:
                if key.fileobj is self.listener:
                    served = True
                    client, _ = self.listener.accept()
                    self.clients[client] = 0
                    self.selector.register(client, selectors.EVENT_READ)
                elif key.fileobj is self.ended:
                    self._reap()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    request = self._hear(key.fileobj)
                    if request is not None:
                        return request
            if not self.clients and (served or not events) and self._leave():
                return None

    def _hear(self, client: socket.socket) -> ProcessRequest | None:
        with client.makefile("rb") as stream, contextlib.suppress(ConnectionResetError):
            line = stream.readline()
            if line.endswith(b"\n"):
                return self._answer(client, json.loads(line))
        self._drop(client)
        return None

    def _answer(self, client: socket.socket, asked: dict[str, Any]) -> ProcessRequest | None:
        if asked == {"current": True}:
            self._say(client, changed=self.sources.changed())
            return None
        request = ProcessRequest(**asked)
        differing = read_at_import(self.environment, request.environment)
        if differing:
            self._say(client, fresh=differing)
            return None
        found = preload.unclean()
        if found:
            self._say(client, error=f"the server of test processes has {' and '.join(found)}")
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python counts all threads, those that see to forks themselves as well.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            self._forget()
            return request
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        self.clients[client] = pid
        self._say(client, pid=pid)
        return None

    def _say(self, client: socket.socket, **answer: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(json.dumps(answer).encode() + b"\n")

    def _drop(self, client: socket.socket) -> None:
        pid = self.clients.pop(client)
        self.selector.unregister(client)
        client.close()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.ended.recv(4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for client, pid in self.clients.items():
                    if pid == ended[0]:
                        self.clients[client] = 0
                        self._say(client, status=os.waitstatus_to_exitcode(ended[1]))

    def _forget(self) -> None:
        """In a forked process: nothing of the server's stays open, and signals do what they do by default."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for end in (self.ended, self.wake, *self.clients):
            end.close()

    def _leave(self) -> bool:
        """Whether no client is coming; then the folder is gone. One that has the lock may ask meanwhile."""
        with locked(self.folder, wait=False) as ours:
            if self.selector.select(0) or (not ours and self.folder.exists()):
                return False
            self.listener.close()
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.folder / "socket").st_ino == self.address:
                    shutil.rmtree(self.folder)
        return True
