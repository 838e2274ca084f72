"""An error that several ranks have is shown once, and what other ranks raise because of it as one line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hekaton.errors import HekatonError, RaisedElsewhere

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_KEY = "hekaton/first_error"
STORE_STAYS = 2.0
"""Seconds that the process which holds the store outlives its own error, for the others to look at it."""


@contextmanager
def first_error_is_shown(store: Store, rank: int) -> Iterator[None]:
    """Let the first rank that raises tell the others through the store that it did.

    :raises RaisedElsewhere: in place of an error of this rank, when another one raised before.
    """
    try:
        yield
    except Exception as error:
        line = _line(error)
        first = _first(store, f"{rank}\n{line}")
        if first is None or first[0] == str(rank):
            if rank == 0 and not os.environ.get("TORCHELASTIC_USE_AGENT_STORE"):
                time.sleep(STORE_STAYS)
            raise
        said = "" if first[1] == line else f"{line[:100]} (after the error of rank {first[0]})"
        follow_up = RaisedElsewhere(said)
        follow_up.exit_code = error.exit_code if isinstance(error, HekatonError) else 1
        raise follow_up from error


def _line(error: Exception) -> str:
    if isinstance(error, HekatonError):
        return error.message
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"


def _first(store: Store, mine: str) -> list[str] | None:
    """The rank and the line of the error that was first; ``None`` where the store is gone."""
    import torch.distributed as dist

    try:
        found = store.compare_set(_KEY, "", mine)
    except (dist.DistError, RuntimeError):
        return None
    return found.decode("utf-8", "replace").split("\n", 1)
