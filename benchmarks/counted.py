"""What a process of a run opens and reads, and what all of them send through their store: for ranks.py."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store


class CountingProxy(threading.Thread):
    """Hands on what processes and their store send each other, and counts the bytes.

    :param port: of the store, on this machine.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._store = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.sent = self.received = 0
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._connect()
                else:
                    self._hand_on(key.fileobj, *key.data)

    def _connect(self) -> None:
        process, _ = self._listener.accept()
        store = socket.create_connection(("127.0.0.1", self._store))
        for one in (process, store):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(process, selectors.EVENT_READ, (store, True))
        self._selector.register(store, selectors.EVENT_READ, (process, False))
        self.connections += 1

    def _hand_on(self, source: socket.socket, to: socket.socket, is_sent: bool) -> None:
        content = b""
        with contextlib.suppress(OSError):
            content = source.recv(1 << 16)
        if not content:
            for one in (source, to):
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
            return
        self.sent += is_sent * len(content)
        self.received += (not is_sent) * len(content)
        with contextlib.suppress(OSError):
            to.sendall(content)


IMPORTS = "<frozen importlib._bootstrap_external>"


class Opens:
    """Counts the files that this process opens, by class; without modules that it imports, of which it opens
    the source or what is compiled, if another process has compiled it.

    :param classes: class -> folders and files that belong to it; the first that fits counts.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        self._classes = {name: [os.path.realpath(one) for one in paths] for name, paths in classes.items()}
        self.counted: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        if sys._getframe(1).f_code.co_filename == IMPORTS:
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        kind = next(
            (
                name
                for name, places in self._classes.items()
                if any(path == one or path.startswith(f"{one}/") for one in places)
            ),
            "source" if path.endswith(".py") else "",
        )
        if kind:
            self.counted[kind] += 1
            self.files[path] += 1


def as_rank(
    report: str,
    classes: Mapping[str, Sequence[str]],
    words: Sequence[str],
    *,
    port: int | None = None,
    connected_at_once: int | None = None,
) -> None:
    """``hekaton WORDS`` on this process, which writes what it counted to ``report-RANK.json``.

    :param port: of the store, where it is not that of the environment.
    :param connected_at_once: in place of :data:`hekaton.distributed.CONNECTED_AT_ONCE`; then nobody asks the
        store again after some time, so that what is counted does not depend on the time.
    """
    began = time.time()
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    opens = Opens(classes)
    from hekaton import distributed
    from hekaton.cli import main
    from hekaton.failures import arrival, watch
    from hekaton.trainer import Trainer

    if connected_at_once is not None:
        distributed.CONNECTED_AT_ONCE = connected_at_once
        watch.ASKED_EVERY = 60.0
        arrival.may_go_on = waited_for

    first: dict[str, float] = {}
    train_step = Trainer.train_step

    def counted_step(trainer: Trainer) -> object:
        result = train_step(trainer)
        first.setdefault("at", time.time())
        first.setdefault("cpu", time.process_time())
        first.setdefault("descriptors", len(os.listdir("/proc/self/fd")))
        return result

    Trainer.train_step = counted_step  # type: ignore[assignment,method-assign]
    status = main(list(words))
    found = {
        "status": status, "began": began, "ended": time.time(), "cpu in all": time.process_time(),
        "opens": dict(opens.counted), "files": dict(opens.files),
        "memory": _peak_memory(), **first,
    }  # fmt: skip
    Path(f"{report}-{os.environ['RANK']}.json").write_text(json.dumps(found))
    assert status == 0, words


def waited_for(store: Store) -> bool:
    """In place of asking again and again."""
    store.wait(["hekaton/arrived/go_on"], timedelta(seconds=60))
    return True


def _peak_memory() -> int:
    """Bytes of this process alone at its peak, less what files that it maps hold."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    as_rank(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:])
