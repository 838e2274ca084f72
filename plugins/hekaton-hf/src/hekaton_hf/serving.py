"""One process of a machine that encodes for the others, so that the table of a tokenizer is there once.

    python -m hekaton_hf.serving DESCRIPTOR SECONDS FILE BACKEND FINGERPRINT

The process that first takes the name of a tokenizer, among the abstract sockets of Linux, starts it and hands
it the socket; the others connect. It ends when the last of them has closed its connection, and with it the
name is gone. What it answers depends on its input alone, so processes of several runs may share it.

A message is two: JSON that says what follows, and the bytes of texts and arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hekaton.data import Integers, TokenIds

log = logging.getLogger("hekaton")

ANSWERS_WITHIN = 300.0
"""Seconds after which a process encodes for itself."""
LISTENS_WITHIN = 30.0
"""Seconds from the taking of a name to the first that can connect."""
STAYS = 2.0
"""Seconds that a server stays without a connection, which no process may have for a moment."""


class Encodes(Protocol):
    """A tokenizer with all that :data:`OPERATIONS` need."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    fingerprint: str
    folder: Path | None

    def files(self) -> Mapping[str, str]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]: ...
    def encode_piece(self, text: str, *, before: str, after: str) -> TokenIds: ...
    def encode_places(self, text: str) -> tuple[TokenIds, Integers]: ...
    def byte_lengths(self) -> Integers: ...
    def decode(self, ids: Sequence[int]) -> str: ...


OPERATIONS: Mapping[str, Callable[[Encodes, Sequence[Any]], list[Any]]] = {
    "encode_batch": lambda tokenizer, texts: tokenizer.encode_batch(texts),
    "encode_piece": lambda tokenizer, texts: [
        tokenizer.encode_piece(texts[0], before=texts[1], after=texts[2])
    ],
    "encode_places": lambda tokenizer, texts: list(tokenizer.encode_places(texts[0])),
    "byte_lengths": lambda tokenizer, _: [tokenizer.byte_lengths()],
    "decode": lambda tokenizer, ids: [tokenizer.decode(ids[0].tolist())],
}
"""What is asked of a tokenizer by name, with texts and arrays as arguments and results."""


class NotServed(Exception):
    """There is no process that encodes, or it does not answer."""


class Client:
    """The connection of this process to the one that encodes; a process that is forked has one of its own."""

    def __init__(self, file: Path, backend: str, fingerprint: str) -> None:
        """:param file: the ``tokenizer.json``.
        :param backend: as in ``[hf_tokenizer]``.
        :param fingerprint: of the tokenizer; a server that reads another one ends.
        """
        self._arguments = [str(file.resolve()), backend, fingerprint]
        self._connection: Connection | None = None
        self._process = 0
        self._lock = threading.Lock()

    def ask(self, operation: str, values: Sequence[Any]) -> list[Any]:
        """The results of one of :data:`OPERATIONS`.

        :raises NotServed: where they cannot be had.
        """
        with self._lock:
            try:
                header, results = self._answer(operation, values)
            except (OSError, EOFError):
                try:  # one that was about to end is replaced
                    self._connection = None
                    header, results = self._answer(operation, values)
                except (OSError, EOFError) as error:
                    raise NotServed(f"no process of this machine encodes: {error or 'it ended'}") from error
        for level, message in header["said"]:
            log.log(level, "%s", message)
        if header["error"]:
            raise NotServed(header["error"])
        return results

    def _answer(self, operation: str, values: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
        if self._connection is None or self._process != os.getpid():
            self._connection, self._process = self._connected(), os.getpid()
        _send(self._connection, {"operation": operation}, values)
        if not self._connection.poll(ANSWERS_WITHIN):
            self._connection = None
            raise NotServed(f"the process that encodes has not answered for {ANSWERS_WITHIN:.0f} s")
        return _received(self._connection)

    def _connected(self) -> Connection:
        name = self._name()
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
            try:
                listener.bind(name)
            except OSError:  # another process was first
                is_first = False
            else:
                listener.listen(512)
                is_first = True
            _connect(connection, name)
            if is_first:  # connected first, so that there is no moment at which nobody is
                _start(listener.fileno(), self._arguments)
            if _user_of(connection) != os.getuid():
                raise NotServed("the process that encodes is another user's")
            return Connection(connection.detach())

    def _name(self) -> str:
        """Of the server of this tokenizer for this user, made of the same code."""
        import tokenizers

        code = [sys.prefix, __file__, tokenizers.__version__, sys.version]
        said = json.dumps([os.getuid(), *code, *self._arguments])
        return "\0hekaton-tokenizer-" + hashlib.sha256(said.encode()).hexdigest()[:32]


def _start(listener: int, arguments: Sequence[str]) -> None:
    """It has a session of its own and is nobody's child: signals to the processes of a run do not end it."""
    subprocess.run(
        [sys.executable, "-P", "-m", "hekaton_hf.serving", str(listener), str(STAYS), *arguments],
        pass_fds=[listener],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )


def _connect(connection: socket.socket, name: str) -> None:
    """Who has taken the name listens a moment later."""
    deadline = time.monotonic() + LISTENS_WITHIN
    while connection.connect_ex(name):
        if time.monotonic() > deadline:
            raise NotServed("the process that was to encode does not listen")
        time.sleep(0.02)


def _user_of(connection: socket.socket) -> int:
    """Who holds the other end."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", said)[1])


class Server:
    """Answers each connection on a thread of its own."""

    def __init__(self, listener: socket.socket, tokenizer: Encodes, *, stays: float) -> None:
        """:param stays: seconds without a connection after which it ends."""
        self._listener = listener
        self._tokenizer = tokenizer
        self._stays = stays
        self._open = 0
        self._quiet_since = time.monotonic()
        self._lock = threading.Lock()
        self._said = _Said()
        log.addHandler(self._said)
        log.setLevel(logging.INFO)

    def serve(self) -> None:
        """Until nobody is connected any more."""
        self._listener.settimeout(self._stays / 4)
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                with self._lock:
                    if not self._open and time.monotonic() - self._quiet_since > self._stays:
                        return
                continue
            connection.setblocking(True)
            if _user_of(connection) != os.getuid():
                connection.close()
                continue
            with self._lock:
                self._open += 1
            threading.Thread(target=self._answer, args=[Connection(connection.detach())], daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, EOFError), connection:
            while True:
                header, values = _received(connection)
                results, error = [], ""
                try:
                    results = OPERATIONS[header["operation"]](self._tokenizer, values)
                except Exception as e:  # the process that asked meets it when it encodes for itself
                    error = f"{type(e).__name__}: {e}"
                _send(connection, {"error": error, "said": self._said.taken()}, results)
        with self._lock:
            self._open -= 1
            self._quiet_since = time.monotonic()


class _Said(logging.Handler):
    """What is logged here is for the process that asks next."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._messages: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        taken, self._messages = self._messages, []
        return taken


def _send(connection: Connection, header: Mapping[str, Any], values: Sequence[Any]) -> None:
    parts, described = [], []
    for value in values:
        if isinstance(value, str):
            parts.append(value.encode("utf-8", "surrogatepass"))
            described.append(["", len(parts[-1])])
        else:
            parts.append(np.ascontiguousarray(value).tobytes())
            described.append([value.dtype.str, *value.shape])
    connection.send_bytes(json.dumps({**header, "values": described}).encode())
    connection.send_bytes(b"".join(parts))


def _received(connection: Connection) -> tuple[dict[str, Any], list[Any]]:
    header = json.loads(connection.recv_bytes())
    content = bytearray(connection.recv_bytes())  # arrays over it can be written to
    values: list[Any] = []
    start = 0
    for kind, *shape in header["values"]:
        count = math.prod(shape)
        if kind:
            values.append(np.frombuffer(content, kind, count, start).reshape(shape))
            start += values[-1].nbytes
        else:
            values.append(content[start : start + count].decode("utf-8", "surrogatepass"))
            start += count
    return header, values


def main(descriptor: str, stays: str, file: str, backend: str, fingerprint: str) -> None:
    """Serve the tokenizer of ``file`` on a listening socket."""
    if os.fork():
        os._exit(0)
    from hekaton_hf.large_tokenizer import return_freed_memory
    from hekaton_hf.tokenizer import read

    with socket.socket(fileno=int(descriptor)) as listener:
        tokenizer = read(Path(file), backend)
        return_freed_memory()
        if tokenizer.fingerprint == fingerprint:
            Server(listener, tokenizer, stays=float(stays)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
