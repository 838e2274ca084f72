"""Saves that are written by a thread while training goes on."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from hekaton.checkpoint.disk.folders import Folder
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs.manager import CheckpointManager
from hekaton.checkpoint.tensors.comparison import Parts
from hekaton.checkpoint.tensors.staging import Staging
from hekaton.errors import CheckpointError

log = logging.getLogger("hekaton")

_FAILED, _WRITING, _DONE = 0, 1, 2
_PATIENCE = 10.0
"""Seconds in which the thread of this rank, too, should learn what failed on another."""


@dataclass(frozen=True)
class _Save:
    step: int
    folder: Future[Folder]

    @property
    def state(self) -> int:
        if not self.folder.done():
            return _WRITING
        return _FAILED if self.folder.exception() is not None else _DONE


class BackgroundSaves:
    """At most one save at a time, on a thread of each rank.

    The methods are called by all ranks at the same steps, on the main thread; there, too, ``saved`` is
    called, and what went wrong is raised.

    :param saved: called with the step and its folder once the step is whole.
    """

    def __init__(
        self, manager: CheckpointManager, *, pinned: bool, saved: Callable[[int, Folder], None]
    ) -> None:
        self._manager = manager
        self._saved = saved
        self._ranks = Ranks.of()
        self._staging = Staging(pinned=pinned)
        self._save: _Save | None = None

    def start(self, step: int, parts: Parts, info: Mapping[str, Any], *, good: bool) -> None:
        """Copy the state and begin to write it; arguments as for :meth:`CheckpointManager.save`.

        A save that is still being written is waited for.
        """
        began = time.perf_counter()
        self.wait()
        self._manager.use_own_group()
        staged, info = self._staging.copy(parts), copy.deepcopy(info)
        stalled = time.perf_counter() - began

        def write() -> Folder:
            self._staging.wait()
            return self._manager.save(step, staged, info, good=good, stalled=stalled)

        self._save = _Save(step, _in_thread(write, f"save of step {step}"))

    def hold_device(self) -> None:
        """Called before the state changes: what the device does next waits until it is copied."""
        self._staging.hold_device()

    def poll(self) -> None:
        """Called at every step: finish what is whole on all ranks.

        :raises CheckpointError: on all ranks, when the save failed.
        """
        save = self._save
        if save is None:
            return
        state = self._ranks.least(save.state)
        if state == _FAILED:
            self._save = None
            with contextlib.suppress(TimeoutError):
                save.folder.result(timeout=_PATIENCE)
            raise CheckpointError(f"saving step {save.step} failed on another rank")
        if state == _DONE:
            self._finish(save)

    def wait(self) -> None:
        """Wait for the save that is being written, if any.

        :raises CheckpointError: on all ranks, when it failed.
        """
        save = self._save
        if save is None:
            return
        if save.state == _WRITING and self._ranks.is_first:
            log.info("waiting for step-%d, which is still being written", save.step)
        self._finish(save)

    def end(self, error: BaseException | None) -> None:
        """Wait at the end of the run.

        :param error: what ended it early: a failure to save is then logged, not raised. A second interrupt
            abandons the save.
        """
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            log.error("%s", failed)

    def _finish(self, save: _Save) -> None:
        try:
            folder = save.folder.result()
        finally:
            if save.folder.done():  # unless interrupted
                self._save = None
        self._saved(save.step, folder)


def _in_thread(function: Callable[[], Folder], name: str) -> Future[Folder]:
    """Not by an executor: Python would wait for its threads at exit, also for one that was abandoned."""
    future: Future[Folder] = Future()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
                # DCP waits for the current stream at every piece: not for the one that trains.
                torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
