"""How the processes of a run meet: at a store, where one that failed before has left its message."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from hekaton.environment import launched
from hekaton.errors import ConfigError, HekatonError, RaisedElsewhere
from hekaton.failures.board import Board, torchrun_holds_the_store
from hekaton.failures.shown import described, elsewhere, own_error, tell_torchrun
from hekaton.failures.whereabouts import Whereabouts

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TELLS = 5.0
"""Seconds in which a process that fails before the others are met tells them without a word of its own."""
STAYS = 300.0
"""Seconds, at most, that it stays for others which are late, as long as those wait for it by default."""
_ARRIVED = "hekaton/arrived"
_GO_ON = "hekaton/arrived/go_on"
"""Set by the last process that comes, and by one that fails before it has come."""
_connections: dict[tuple[str, int], tuple[Store, Iterator[int]]] = {}
"""One for as long as the process lives, and the number of each opening: a store that rank 0 closed and opened
again could be the old one to a process that is faster."""
_ANSWERS = 10
"""Seconds in which the process that looks who is missing has looked."""


def open_store(rank: int, *, seconds: float) -> Store:
    """The store at ``MASTER_ADDR``, which rank 0 holds unless torchrun does. It waits for nobody else.

    A process that trains twice, as a notebook's may, finds nothing there of the first time: each opening has
    its own prefix, and all processes open it equally often.

    :raises torch.distributed.DistError: when it cannot be reached in that time.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=seconds)
    if address not in _connections:
        opened = dist.TCPStore(  # type: ignore[attr-defined]  # public, and documented
            *address,
            is_master=rank == 0 and not torchrun_holds_the_store(),
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
        _connections[address] = opened, itertools.count()
    store, openings = _connections[address]
    store.set_timeout(timeout)
    # A store of torchrun's has all that an attempt before this one left there (--max-restarts).
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if torchrun_holds_the_store() else "0"
    return dist.PrefixStore(f"{attempt}/{next(openings)}", store)  # type: ignore[attr-defined]  # public, and documented


def meet(store: Store, board: Board, *, rank: int, world_size: int, seconds: float) -> None:
    """Wait until all processes are here.

    :raises RaisedElsewhere: when one of them has failed instead.
    :raises ConfigError: naming those that have not connected in time; or where this process has the rank of
        another one, or something else by which they could not meet.
    """
    if torchrun_holds_the_store() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        board.arrive()
        return  # the store may be that of the attempt before, with all that was in it
    wrong = _place_taken(store, rank=rank, world_size=world_size)
    if wrong is not None:
        _publish(wrong, store, board)
        raise wrong
    board.arrive()
    arrived = store.add(_ARRIVED, 1)
    if arrived >= world_size:
        store.set(_GO_ON, "1")
    end = time.monotonic() + seconds
    pause = 0.01
    while not may_go_on(store):
        if time.monotonic() > end:
            raise ConfigError(
                _missing(store, world_size, seconds),
                hint="start all processes with one launcher, and look at the output of those; "
                "comm.init_timeout_seconds is how long each waits",
            )
        time.sleep(pause)
        pause = min(2 * pause, max(0.2, world_size / 2000))
    cause = board.cause()
    if cause is not None:
        ended = elsewhere(board, cause)
        board.looked()
        raise ended


def _place_taken(store: Store, *, rank: int, world_size: int) -> ConfigError | None:
    """What is wrong with the place of this process among the others, before any of them waits for it."""
    mine = {
        "rank": rank,
        "host": socket.gethostname(),
        "number of processes (WORLD_SIZE)": world_size,
        "version of torch": str(torch.__version__),
        "connection of gloo (TORCH_GLOO_LAZY_INIT)": os.environ.get("TORCH_GLOO_LAZY_INIT", "not set"),
    }
    first = json.loads(store.compare_set(f"{_ARRIVED}/first", "", json.dumps(mine)))
    names = [name for name in mine if name not in ("rank", "host") and first.get(name) != mine[name]]
    if names:
        lines = [
            f"  {name}: {first.get(name, 'not set')} on rank {first['rank']} ({first['host']}), "
            f"{mine[name]} on rank {rank} ({mine['host']})"
            for name in names
        ]
        return ConfigError(
            "\n".join(["the processes of this run cannot meet:", *lines]),
            hint="start the same number of processes on all machines, or say how many there are in all "
            "(--nnodes and --nproc_per_node of torchrun), with the same versions and environment",
        )
    host = f"{socket.gethostname()}, process {os.getpid()}"
    other = store.compare_set(f"{_ARRIVED}/{rank}", "", host).decode()
    if other != host:
        return ConfigError(
            f"two processes of this run have rank {rank}: on {other}, and on {host}",
            hint="give each machine a --node_rank of its own, and each process a RANK",
        )
    return None


def may_go_on(store: Store) -> bool:
    """Whether all are here or one has failed. To wait for the key would be less to ask, but a store that is
    waited for writes warnings to the console, and lets nobody interrupt."""
    return bool(store.check([_GO_ON]))


def _missing(store: Store, world_size: int, seconds: float) -> str:
    """Who has not come, in words: one process asks for each rank, and the others for its answer."""
    answer = f"{_ARRIVED}/missing"
    if store.add(f"{answer}/asked", 1) > 1:
        try:
            store.wait([answer], timedelta(seconds=_ANSWERS + world_size / 1000))
            return store.get(answer).decode()
        except (dist.DistError, RuntimeError):  # the one that asks is gone: this one asks, too
            pass
    missing = [other for other in range(world_size) if not store.check([f"{_ARRIVED}/{other}"])]
    named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    said = (
        f"{len(missing)} of {world_size} processes have not connected within {seconds:g} s: rank"
        f"{'s' if len(missing) > 1 else ''} {named}"
    )
    store.set(answer, said)
    return said


def tell_the_others(error: Exception) -> None:
    """Leave an error of before the processes met where the others find it, who would wait for this one.

    Nothing is raised: where the store cannot be reached, there is nobody to tell.
    """
    try:
        place = launched()
        if place.world_size == 1 or isinstance(error, RaisedElsewhere):
            return
        if place.rank != 0 and not _is_there(TELLS):
            say_it_waits(place.rank, error)
            if not _is_there(STAYS):
                return
        store = open_store(place.rank, seconds=TELLS)
    except (HekatonError, dist.DistError, OSError, KeyError):
        return
    board = Board(store, rank=place.rank, world_size=place.world_size)
    board.arrive()
    _publish(error, store, board)
    if place.rank == 0 and not board.all_looked() and not torchrun_holds_the_store():
        say_it_waits(place.rank, error)
        board.leave(STAYS)


def _is_there(seconds: float) -> bool:
    """Whether the store comes within that time. A connection of Python's own can be interrupted."""
    end = time.monotonic() + seconds
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)


def say_it_waits(rank: int, error: Exception) -> None:
    """A process that goes on after it has failed says why, on its own console."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    print(
        f"rank {rank}: waits up to {STAYS:g} s for processes that are late, to tell them why this one "
        f"failed: {line}",
        file=sys.stderr,
        flush=True,
    )


def _publish(error: Exception, store: Store, board: Board) -> None:
    own = own_error(error)
    if own is None:
        return
    failure = described(own, Whereabouts(), rank=board.rank)
    board.publish(failure)
    store.set(_GO_ON, "1")
    tell_torchrun(str(failure))
    board.leave(TELLS)
