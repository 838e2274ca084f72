"""How the processes of a run meet: at a store, where one that failed before has left its message."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from hekaton.environment import launched
from hekaton.errors import ConfigError, HekatonError, RaisedElsewhere
from hekaton.failures.board import Board, torchrun_holds_the_store
from hekaton.failures.shown import described, elsewhere, own_error, tell_torchrun
from hekaton.failures.whereabouts import Whereabouts

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

TELLS = 5
"""Seconds in which a process that fails before the others are met tries to reach the store."""
_ARRIVED = "hekaton/arrived"


def open_store(rank: int, *, seconds: float) -> Store:
    """The store at ``MASTER_ADDR``, which rank 0 holds unless torchrun does. It waits for nobody else.

    :raises torch.distributed.DistError: when it cannot be reached in that time.
    """
    held_here = rank == 0 and not torchrun_holds_the_store()
    return dist.TCPStore(  # type: ignore[attr-defined]  # public, and documented
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=held_here,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


def meet(store: Store, board: Board, *, rank: int, world_size: int, seconds: float) -> None:
    """Wait until all processes are here.

    :raises RaisedElsewhere: when one of them has failed instead.
    :raises ConfigError: naming those that have not come in time.
    """
    board.arrive()
    store.set(f"{_ARRIVED}/{rank}", "1")
    store.add(_ARRIVED, 1)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return  # the store may be that of the attempt before, with all that was in it
    end = time.monotonic() + seconds
    pause = 0.01
    while store.add(_ARRIVED, 0) < world_size:
        cause = board.cause()
        if cause is not None:
            raise elsewhere(board, cause)
        if time.monotonic() > end:
            missing = [other for other in range(world_size) if not store.check([f"{_ARRIVED}/{other}"])]
            named = ", ".join(map(str, missing[:8])) + (
                f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            )
            raise ConfigError(
                f"{len(missing)} of {world_size} processes have not come within {seconds:g} s: rank"
                f"{'s' if len(missing) > 1 else ''} {named}",
                hint="start all processes with one launcher, and look at the consoles of those; "
                "comm.init_timeout_seconds is how long each waits",
            )
        time.sleep(pause)
        pause = min(2 * pause, max(0.2, world_size / 2000))


def tell_the_others(error: Exception) -> None:
    """Leave an error of before the processes met where the others find it, who would wait for this one.

    Nothing is raised: where the store cannot be reached, there is nobody to tell.
    """
    try:
        place = launched()
        store = open_store(place.rank, seconds=TELLS)
    except (HekatonError, dist.DistError, OSError, KeyError):
        return
    own = own_error(error)
    if place.world_size == 1 or own is None or isinstance(error, RaisedElsewhere):
        return
    board = Board(store, rank=place.rank, world_size=place.world_size)
    board.arrive()
    failure = described(own, Whereabouts(), rank=place.rank)
    board.publish(failure)
    tell_torchrun(str(failure))
    board.leave(TELLS)
