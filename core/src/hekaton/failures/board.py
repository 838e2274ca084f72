"""What processes tell each other of their failures, through the store that they met at."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_POLL = 0.05
ANSWERS = 30.0
"""Seconds in which the store answers. Behind a link that is cut it never does, and nothing says so."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a process says of its own failure.

    :param machine: key of its machine; two machines may have the same host name.
    :param where: the step and the phase, in words.
    :param line: the error in one line, which is how ranks that have the same one know it.
    :param text: the whole message.
    :param teller: the rank that tells of it, which is another where an error was raised on all.
    :param file: where its traceback is, empty for an error that has none.
    """

    rank: int
    host: str
    machine: str
    where: str
    line: str
    text: str
    exit_code: int
    teller: int
    file: str = ""

    def __str__(self) -> str:
        file = f"\n  its traceback: {self.file} on {self.host}" if self.file else ""
        return f"rank {self.rank} on {self.host} failed {self.where}: {self.text}{file}"


def this_machine() -> str:
    """A key of this machine: the launcher's number of it, where it gives one."""
    number = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or ""
    return f"{socket.gethostname()}/{number}"


def torchrun_holds_the_store() -> bool:
    """Whether the store outlives all ranks, because torchrun's agent has it and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class Board:
    """The failures of a run. Whatever is asked of a store that is gone, or has not answered in half a minute,
    is answered as if nothing was there.

    The order of failures is that in which the store heard of them: clocks of machines differ.
    """

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # public, and documented

        self._store = PrefixStore("hekaton/failures", store)
        self.rank = rank
        self._world_size = world_size
        self._cause: Failure | None = None
        self._has_looked = False
        self._first_here: dict[int, bool] = {}
        self.is_gone = False
        """Whether the store did not answer in time, or has closed the connection: it is not asked
        any more."""

    def arrive(self) -> None:
        """Leave this rank's host, for others to name it should it be lost."""
        self._set(f"host/{self.rank}", socket.gethostname())

    def publish(self, failure: Failure) -> Failure:
        """Tell of a failure of this rank's own; :returns: the first of all ranks."""
        sent = json.dumps(asdict(failure))
        first = _read(self._ask(lambda: self._store.compare_set("first", "", sent), sent.encode()))
        if first.teller != self.rank and first.line != failure.line:
            self._add("others")
        return first

    def cause(self, *, within: float = 0.0) -> Failure | None:
        """The first failure that a rank told of, after waiting for one for some seconds.

        Once it is known, the store is not needed for it.
        """
        self._cause = self._cause or self._wait("first", within)
        return self._cause

    def others(self) -> int:
        """How many ranks told of other failures after the first."""
        return self._add("others", 0)

    def breaks(self) -> None:
        """Tell that this rank's collective broke: nobody waits for this one."""
        self._set(f"lost/{self.rank}", "1")

    def lose(self, failure: Failure, *, within: float) -> Failure:
        """Tell that nobody says why this rank's collective broke.

        :returns: what one of the ranks that were lost in this way says for all, after some seconds.
        """
        if self._add("losers") != 1:
            return self._wait("lost", within + 3.0) or failure
        time.sleep(within)
        text = failure.text + self._silent()
        said = Failure(**{**asdict(failure), "text": text})
        self._set("lost", json.dumps(asdict(said)))
        return said

    def lost(self) -> Failure | None:
        """What the ranks say that lost another one, once they do."""
        return self._wait("lost", 0.0)

    def is_missed(self) -> bool:
        """Whether a rank gave up waiting for others, of which this may be one."""
        return self._has("losers")

    def says_where(self, where: str) -> None:
        """Tell where this rank is, in words: those that lost it say so."""
        self._set(f"where/{self.rank}", where)

    def is_stuck(self, step: int, said: str) -> bool:
        """Tell that this rank makes no progress in a step; :returns: whether it is the one that says so for
        all: the first of those that make none in it."""
        self._set(f"stuck/{self.rank}", said)
        return self._add(f"stuck in {step}") == 1

    def moves_again(self, step: int) -> None:
        """Take back what :meth:`is_stuck` told."""
        self._set(f"stuck/{self.rank}", "")
        self._add(f"stuck in {step}", -1)

    def stuck(self) -> dict[int, str]:
        """What the ranks that make no progress said of themselves."""
        found = {rank: self._get(f"stuck/{rank}") for rank in range(self._world_size)}
        return {rank: said for rank, said in found.items() if said}

    def host_of(self, rank: int) -> str:
        """The host of a rank, as far as it has told."""
        return self._get(f"host/{rank}") or "an unknown host"

    def is_first_here(self, failure: Failure) -> bool:
        """Whether this process is the first of its machine to ask about a failure; where the store is gone,
        whether it is the first of its machine."""
        if failure.rank not in self._first_here:
            asked = self._add(f"said/{failure.rank}/{this_machine()}")
            alone = asked == 0 and os.environ.get("LOCAL_RANK", "0") == "0"
            self._first_here[failure.rank] = asked == 1 or alone
        return self._first_here[failure.rank]

    def looked(self) -> None:
        """Count this rank among those that know the cause, and need the store no longer."""
        if not self._has_looked:
            self._has_looked = True
            self._add("looked")

    def leave(self, seconds: float) -> None:
        """End this process's part; the one that holds the store stays until all others have looked at it.

        :param seconds: how long it stays at most.
        """
        if self.rank != 0 or torchrun_holds_the_store():
            self.looked()
            return
        end = time.monotonic() + seconds
        while not self.all_looked() and time.monotonic() < end and not self.is_gone:
            time.sleep(_POLL)

    def all_looked(self) -> bool:
        """Whether all others know the cause. Only the process that holds the store may ask at the end."""
        return self._add("looked", 0) >= self._world_size - 1

    def _silent(self) -> str:
        """The ranks that have said nothing, in words."""
        silent, elsewhere = [], ""
        for rank in range(self._world_size):
            if self._has(f"lost/{rank}"):
                continue
            where = self._get(f"where/{rank}")
            if where:
                elsewhere += f"\n  rank {rank} on {self.host_of(rank)} has not come: it is {where}"
            else:
                silent.append(f"{rank} on {self.host_of(rank)}")
        if not silent:
            return elsewhere
        more = f" and {len(silent) - 8} more" if len(silent) > 8 else ""
        ranks = f"rank{'s' if len(silent) > 1 else ''} {', '.join(silent[:8])}{more}"
        gone = "killed (out of memory?), or the machine or its network is gone"
        return f"{elsewhere}\n  no message from {ranks}: {gone}"

    def _wait(self, key: str, seconds: float) -> Failure | None:
        end = time.monotonic() + seconds
        while True:
            if self._has(key):
                return _read(self._get(key).encode())
            if time.monotonic() >= end or self.is_gone:
                return None
            time.sleep(_POLL)

    def _has(self, key: str) -> bool:
        return self._ask(lambda: bool(self._store.check([key])), False)

    def _get(self, key: str) -> str:
        return self._ask(lambda: self._store.get(key).decode(), "") if self._has(key) else ""

    def _set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value), None)

    def _add(self, key: str, amount: int = 1) -> int:
        return self._ask(lambda: int(self._store.add(key, amount)), 0)

    def _ask(self, ask: Callable[[], T], nothing: T) -> T:
        import torch.distributed as dist

        if self.is_gone:
            return nothing
        answers: list[T] = []

        def wait() -> None:
            try:
                answers.append(ask())
            except dist.DistNetworkError:  # nothing connects again, and torch prints a trace at each try
                self.is_gone = True
            except (dist.DistError, RuntimeError):
                return

        waiting = threading.Thread(target=wait, name="hekaton store", daemon=True)
        waiting.start()
        waiting.join(ANSWERS)
        self.is_gone = self.is_gone or waiting.is_alive()
        return answers[0] if answers else nothing


def _read(sent: bytes) -> Failure:
    return Failure(**json.loads(sent))
