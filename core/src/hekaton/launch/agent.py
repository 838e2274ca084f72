"""The agent of torchrun on one machine, which lets processes end as they were told to.

torchrun kills its processes 30 s after a signal, ends with status 1, and starts processes again that have
ended because they were told to. This agent passes signals on, and leaves the end to the processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, ClassVar

from torch.distributed.elastic.agent.server.api import WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hekaton.errors import AGAIN, INTERRUPTED, HekatonError
from hekaton.stop_signals import SIGNALS

FINAL = frozenset({AGAIN, INTERRUPTED, HekatonError.exit_code})
"""Statuses after which another start by itself is wrong: told to end, or wrong for every start."""
LEAVES = 20.0
"""Seconds in which the agent ends after its processes have failed. It asks its store for news of the other
agents, and waits for a machine that cannot be reached any more for as long as ``--rdzv_conf=read_timeout``
allows: meanwhile it looks at no process."""


def use(
    *, limit: float, start: Callable[[], object], end: Callable[[Mapping[int, ProcessFailure]], object]
) -> None:
    """Have ``torch.distributed.run`` use this agent.

    :param limit: seconds that processes have to end after a signal; 0 waits for as long as it takes.
    :param start: called when the processes are to be started; signals are the agent's from here on.
    :param end: ends this process, with what its processes have failed with by rank; called on a thread where
        the agent does not end in ``LEAVES`` seconds.
    """
    from torch.distributed.launcher import api

    Agent.limit = limit
    Agent.start = staticmethod(start)
    Agent.end = staticmethod(end)
    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]


class Agent(LocalElasticAgent):
    """Starts, watches and restarts the processes of one machine."""

    limit = 0.0
    passed_on: ClassVar[set[int]] = set()
    """Signals that were: a process that one of them killed had not begun to answer it."""
    start: Callable[[], object]
    end: Callable[[Mapping[int, ProcessFailure]], object]
    _told: float | None = None
    _looked: float | None = None
    _failed: Mapping[int, ProcessFailure] | None = None

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        self.start()
        self._answer_signals()
        started: dict[int, Any] = super()._start_workers(worker_group)
        if self._looked is None:
            threading.Thread(target=self._watch, daemon=True).start()
        self._looked = time.monotonic()
        self._answer_signals()  # torchrun has set its own for the start of each attempt
        return started

    def _answer_signals(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        self._looked = time.monotonic()
        ended = {failure.exitcode for failure in result.failures.values()}
        # SIGTERM is what ends the others when one has failed.
        if self._told is not None or (ended & FINAL and ended <= FINAL | {-signal.SIGTERM}):
            self._remaining_restarts = 0
        if self._told is not None and self.limit and time.monotonic() - self._told > self.limit:
            print(f"error: processes have not ended {self.limit:g} s after a signal: killed", file=sys.stderr)
            self._told = time.monotonic()
            self._shutdown(signal.SIGKILL)
        if result.failures and self._remaining_restarts == 0:
            self._failed = result.failures
        return result

    def _watch(self) -> None:
        """End where the agent has looked at no process for long, and they have failed."""
        while True:
            time.sleep(LEAVES / 10)
            if time.monotonic() - (self._looked or 0.0) > LEAVES:
                failed = self._failed
                if failed is None and self._worker_group.state == WorkerState.HEALTHY:
                    failed = super()._monitor_workers(self._worker_group).failures
                if failed:
                    self.end(failed)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """:raises SignalException: where there is no process that it could be passed on to. Where all have
        ended, the status is theirs: ``srun`` ends an agent as soon as that of another node has ended."""
        if self._failed is not None:
            return
        if self._told is None:
            self._told = time.monotonic()
            print(f"{signal.Signals(number).name}: passed on to the processes", file=sys.stderr, flush=True)
        self.passed_on.add(number)
        reached = False
        for worker in self._worker_group.workers:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(worker.id, number)
                reached = True
        if not reached and self._worker_group.state != WorkerState.HEALTHY:
            name = signal.Signals(number)
            raise SignalException(f"process {os.getpid()} received {name.name}", sigval=name)
