"""A process that waits for one that has failed ends, too: a collective of NCCL never breaks by itself."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hekaton.failures.board import Board
from hekaton.failures.shown import elsewhere
from hekaton.failures.whereabouts import Whereabouts

ASKED_EVERY = 2.0
"""Seconds, at least, from one look at the store to the next."""
ASKS_ITSELF = 0.5
"""Seconds in which a process that has noticed ends, and asks the store for what it says."""
LEFT = 20.0
"""Seconds that a process has to end by itself, after another one has failed."""


@contextmanager
def ended_with_the_others(
    board: Board,
    *,
    world_size: int,
    where: Whereabouts | None = None,
    end: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """End this process with the cause, when another one has failed and this one has not noticed. Where the
    other one gave up waiting for this one, this one says where it is.

    The store is asked every two seconds, and less often by more than 4,000 processes.

    :param where: this process is.
    """
    done = threading.Event()
    interval = max(ASKED_EVERY, world_size / 2000)

    main = threading.main_thread().ident

    def watch() -> None:
        said = False
        while not done.wait(interval):
            if not said and where is not None and board.is_missed():
                said = True
                board.says_where(f"{where}, at {innermost(main)}")
            cause = board.cause() or board.lost()
            if cause is None:
                continue
            if done.wait(ASKS_ITSELF):
                return
            # The store may go away with the rank that holds it: what this process ends with is known here.
            board.is_first_here(cause)
            board.looked()
            if done.wait(LEFT):
                return
            error = elsewhere(board, cause)
            if str(error):
                print(f"error: {error}", file=sys.stderr, flush=True)
            end(error.exit_code)
            return

    thread = threading.Thread(target=watch, name="hekaton failures of others", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def innermost(thread: int | None) -> str:
    """Where a thread of this process is: file, line and function."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return "no place in Python"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
