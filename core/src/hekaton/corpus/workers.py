"""Processes that do a task for many numbers, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from hekaton.errors import DataError

Result = TypeVar("Result")

_SECONDS = 1.0
"""Between two looks at what workers have counted."""


class StoppedError(Exception):
    """The process that started a worker wants no more."""


class Counts:
    """The documents and tokens that are done, over all workers."""

    def __init__(self, look: Callable[[int, int], None], *, shared: bool) -> None:
        """:param look: called with them every now and then, in this process.
        :param shared: whether workers count in it, which are forked after this.
        """
        self._look = look
        self._shared: Any = multiprocessing.get_context("fork").Array("q", 3) if shared else None
        self._own = [0, 0]

    def add(self, documents: int, tokens: int) -> None:
        """:raises StoppedError: in a worker that has nothing more to do."""
        if self._shared is None:
            self._own = [self._own[0] + documents, self._own[1] + tokens]
            self.look()
            return
        with self._shared.get_lock():
            self._shared[0] += documents
            self._shared[1] += tokens
        if self._shared[2]:
            raise StoppedError

    def look(self) -> None:
        self._look(*(self._own if self._shared is None else self._shared[:2]))

    def stop(self) -> None:
        """Have workers stop at what they count next."""
        self._shared[2] = 1


def results_of(
    task: Callable[[int], Result], numbers: Sequence[int], *, workers: int, counts: Counts
) -> Generator[tuple[int, Result]]:
    """What a task gives for each number, as it is done.

    :param workers: processes, forked from this one; 1 does it here.
    :param counts: shared, where there are several.
    :raises DataError: when a worker died, as one does that the system has no memory for.
    """
    if workers <= 1:
        for number in numbers:
            yield number, task(number)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin)
        given = {pool.submit(task, number): number for number in numbers}
    try:
        left = set(given)
        while left:
            done, left = wait(left, _SECONDS, FIRST_COMPLETED)
            counts.look()
            for one in done:
                yield given[one], one.result()
    except BrokenProcessPool as e:
        raise DataError(
            "a worker died: the system may have ended it for want of memory",
            hint="use fewer --workers; the same command resumes",
        ) from e
    finally:
        counts.stop()
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """An interrupt from a terminal goes to all processes; what it means is up to the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)
