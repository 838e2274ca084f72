"""Rows that worker processes of torch's DataLoader read, each its share of the rows of this rank.

A worker ends with the run, and not by a signal to the process group: see :mod:`hekaton.stop_signals`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hekaton.data import Integers
from hekaton.data.blocks import reader_of
from hekaton.data.rows import Sequences, Stream
from hekaton.errors import DataError, HekatonError
from hekaton.stop_signals import keep_in_worker


def read_in_workers(
    stream: Stream, rows: range, cursor: Integers, *, workers: int, ahead: int | None
) -> Iterator[Sequences]:
    """Step after step, the sequences of all rows. The workers end when the iterator is closed or deleted.

    :param rows: of the global batch, which the workers share out.
    :param cursor: where the rows are, (rows, cursor width).
    :param ahead: steps that each worker reads ahead; torch's default, 2, for ``None``.
    :raises DataError: what a worker has met, or that one has died.
    """
    fork = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    others = set(multiprocessing.active_children())
    with _deaths_are_errors(), _forking():
        arriving = iter(
            DataLoader(
                _Parts(stream, rows, cursor),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=ahead,
                multiprocessing_context=fork,
                worker_init_fn=keep_in_worker,
            )
        )
    started = set(multiprocessing.active_children()) - others
    try:
        while True:
            step = [_received(arriving) for _ in range(workers)]
            yield Sequences(
                {name: np.concatenate([part.tensors[name] for part in step]) for name in step[0].tensors},
                np.concatenate([part.cursor for part in step]),
                left=any(part.left for part in step),
                skipped=sum(part.skipped for part in step),
                ended=frozenset().union(*(part.ended for part in step)),
                sources=[number for part in step for number in part.sources],
            )
    except GeneratorExit:
        del arriving  # the workers are asked to end; one that does not gets a SIGTERM, which it ignores once
        raise
    finally:
        for worker in started:
            if worker.is_alive():
                worker.kill()


class _Parts(IterableDataset["Sequences | _Failure"]):
    """What each worker sends, step after step: the sequences of its share of the rows."""

    def __init__(self, stream: Stream, rows: range, cursor: Integers) -> None:
        self._stream = stream
        self._rows = rows
        self._cursor = cursor

    def __iter__(self) -> Iterator[Sequences | _Failure]:
        worker = get_worker_info()
        assert worker is not None
        mine = np.array_split(np.arange(len(self._rows)), worker.num_workers)[worker.id]
        try:
            reader = reader_of(self._stream, [self._rows[index] for index in mine], self._cursor[mine])
            while True:
                yield reader.next()
        except Exception as e:
            yield _Failure.of(e)


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker; exceptions themselves need not survive the way to another process."""

    message: str
    origin: str
    hint: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, HekatonError):
            return cls(error.message, error.origin, error.hint, trace)
        last = traceback.extract_tb(error.__traceback__)[-1]
        origin = f"{last.filename}, line {last.lineno}, in {last.name}"
        return cls(f"reading the data failed: {type(error).__name__}: {error}", origin, "", trace)


class _InWorker(Exception):
    """The cause of a DataError, with the traceback of the worker as its text."""


def _received(arriving: Iterator[Sequences | _Failure]) -> Sequences:
    with _deaths_are_errors():
        part = next(arriving)
    if isinstance(part, _Failure):
        raise DataError(part.message, origin=part.origin, hint=part.hint) from _InWorker(f"\n{part.trace}")
    return part


@contextlib.contextmanager
def _deaths_are_errors() -> Iterator[None]:
    """torch raises some seconds after a worker has died, where its rows are waited for."""
    try:
        yield
    except RuntimeError as e:
        if "DataLoader worker" not in str(e):
            raise
        raise DataError(
            f"a data worker died: {e}",
            hint="it may have run out of memory: set training.dataloader.num_workers lower",
        ) from e


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """What workers must find set when they are forked.

    The threads of the parent's tokenizer do not exist in a worker, which would wait for them for ever; one
    worker is one core. Python warns of forks beside threads for the same reason: a worker uses none of them.
    And torch warns of more workers than cores, not knowing that other ranks have theirs.

    What torch does at once when a worker dies is undone: it raises in the main thread, wherever that is, in
    the middle of a save as well.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    at_death = signal.getsignal(signal.SIGCHLD)
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
            warnings.filterwarnings("ignore", category=UserWarning, message="This DataLoader will create")
            yield
    finally:
        if in_main_thread and at_death is not None:
            signal.signal(signal.SIGCHLD, at_death)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
