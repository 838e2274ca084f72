"""What the lab does to a run, and what is allowed to come of it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lab_starts import Job, Single, Start, Torchrun

RESTARTS = "kill -9 of a rank, --max-restarts"
PREEMPTION = "preemption"
ALL = (Single.kind, Torchrun.kind, Job.kind)


@dataclass(frozen=True)
class Fault:
    """:param do: brings it about, and may wait; called with the lab, the start and a generator. It says
        False where there is nothing to disturb yet.
    :param limit: seconds after it within which the start has ended, where hangs are found after 6 s.
    :param saves: the run has the time to save, and loses nothing.
    :param ends: whether the start ends by it at all; ``None`` where it may go on.
    :param options: of the launcher.
    :param on_hosts: needs machines with a cable between them.
    """

    name: str
    do: Callable[[Any, Start, Random], bool | None]
    kinds: tuple[str, ...] = ALL
    limit: float = 60.0
    saves: bool = False
    ends: bool | None = True
    options: tuple[str, ...] = ()
    on_hosts: bool = False


def kill_a_rank(lab: Any, start: Start, random: Random) -> bool:
    return _send_to_a_rank(start, random, signal.SIGKILL)


def kill_the_launcher(lab: Any, start: Start, random: Random) -> None:
    start.kill_launcher()


def tell(number: signal.Signals) -> Callable[[Any, Start, Random], bool | None]:
    return lambda lab, start, random: start.tell(number)


def tell_a_rank(lab: Any, start: Start, random: Random) -> bool:
    return _send_to_a_rank(start, random, signal.SIGTERM)


def _send_to_a_rank(start: Start, random: Random, number: signal.Signals) -> bool:
    """Whether there was one."""
    ranks = start.ranks()
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(ranks), number)
        return True
    return False


def stop_a_rank(lab: Any, start: Start, random: Random) -> bool:
    """Stop it for longer than the limit of hangs, then let it go on."""
    ranks = start.ranks()
    if not ranks:
        return False
    rank = random.choice(ranks)
    with contextlib.suppress(ProcessLookupError):
        os.kill(rank, signal.SIGSTOP)
        time.sleep(lab.hang + random.uniform(1.0, 4.0))
        os.kill(rank, signal.SIGCONT)
    return True


def fill_the_disk(lab: Any, start: Start, random: Random) -> None:
    lab.disk.fill(start.ranks())


def cut_the_link(lab: Any, start: Start, random: Random) -> None:
    lab.hosts.cut(random.choice(("node1", "node2")))


def close_the_endpoint(lab: Any, start: Start, random: Random) -> None:
    lab.endpoint.close()


def preempt(lab: Any, start: Start, random: Random) -> None:
    lab.slurm.says(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 1", cwd=start.folder,
    )  # fmt: skip


def kill_a_node_daemon(lab: Any, start: Start, random: Random) -> None:
    lab.slurm.kill_daemon(random.choice(("node1", "node2")))


FAULTS = (
    Fault("kill -9 of a rank", kill_a_rank),
    Fault("SIGTERM", tell(signal.SIGTERM), saves=True),
    Fault("SIGUSR1", tell(signal.SIGUSR1), saves=True),
    Fault("SIGTERM to one rank", tell_a_rank, kinds=(Torchrun.kind,), saves=True),
    Fault("kill -9 of the launcher", kill_the_launcher, kinds=(Torchrun.kind,), saves=True),
    Fault("a rank stopped, for longer than the hang limit", stop_a_rank, limit=90.0, ends=None),
    Fault("full disk", fill_the_disk),
    Fault("logger's endpoint gone", close_the_endpoint, ends=False),
    Fault("link cut", cut_the_link, kinds=(Torchrun.kind, Job.kind), limit=150.0, on_hosts=True),
    Fault(
        RESTARTS,
        kill_a_rank,
        kinds=(Torchrun.kind, Job.kind),
        limit=120.0,
        ends=None,
        options=("--max-restarts=1",),
    ),
    Fault(PREEMPTION, preempt, kinds=(Job.kind,), saves=True),
    Fault("kill -9 of a node's daemon", kill_a_node_daemon, kinds=(Job.kind,), limit=120.0),
)


class Disk:
    """A small disk of its own where it can be mounted; elsewhere processes are kept from writing more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "hekaton-lab", str(folder)],
            capture_output=True, check=False,
        )  # fmt: skip
        self.is_mounted = mounted.returncode == 0
        self._filler = folder / "filler"

    def fill(self, ranks: list[int]) -> None:
        if not self.is_mounted:
            for pid in ranks:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
            return
        with self._filler.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**16))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True, timeout=30)


class Endpoint:
    """A server at a Unix socket that answers every line with ``ok``."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def listen(self, folder: Path) -> None:
        self.close()
        path = folder / "endpoint.socket"
        path.unlink(missing_ok=True)
        here = os.getcwd()
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(folder)  # the path of a socket may have 108 characters
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)
        listener.listen()
        self._open = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Hang up on all, and answer nobody any more."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(2**16):
                connection.sendall(b"ok")
