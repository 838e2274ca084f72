"""Stopping a run and saving it on request, at a step that all ranks agree on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hekaton.errors import PluginError


@dataclass(frozen=True)
class Request:
    """What was asked of a run, and why.

    :param again: the run is not done when it stops: whoever started it should start it again.
    """

    save: bool = False
    stop: bool = False
    again: bool = False
    reasons: tuple[str, ...] = ()


class RunControl:
    """What hooks and signal handlers may ask of a run, on any rank and from any thread.

    A request is carried out by all ranks after the same step: the one at which it is made on one process, the
    next on several. Agreement costs no waiting: flags go over gloo while the next step is computed.
    """

    def __init__(self) -> None:
        self.is_over = False  # set when the run has ended well on all ranks
        self._lock = threading.Lock()
        self._asked = Request()
        self._sent = Request()
        self._work: Any = None
        self._flags = torch.zeros(3, dtype=torch.int32)

    def ask(self, *, save: bool = False, stop: bool = False, again: bool = False, reason: str) -> None:
        """Ask the run to save a checkpoint, to stop, or both: then it saves first.

        :param again: let the exit status say that the run is to be started again; only with ``stop``.
        :param reason: for the log.
        :raises PluginError: for a request that asks for nothing, or gives no reason.
        """
        if not (save or stop) or (again and not stop):
            raise PluginError(
                "control.ask() asks for nothing that a run can do",
                hint="set save=True, stop=True or both; again=True goes with stop=True",
            )
        if not isinstance(reason, str) or not reason.strip():
            raise PluginError("control.ask() needs a reason for the log")
        with self._lock:
            asked = self._asked
            reasons = (*asked.reasons, reason)
            self._asked = Request(asked.save or save, asked.stop or stop, asked.again or again, reasons)

    def agreed(self) -> Request:
        """What all ranks carry out now. Called by all of them after every step."""
        with self._lock:
            asked, self._asked = self._asked, Request()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return asked
        answer = self._answer()
        self._sent = asked
        self._flags = torch.tensor([asked.save, asked.stop, asked.again], dtype=torch.int32)
        self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, async_op=True)
        return answer

    def close(self) -> None:
        """Wait for the messages that are under way. Called by all ranks at the end."""
        if self._work is not None:
            self._work.wait()
            self._work = None

    def _answer(self) -> Request:
        if self._work is None:
            return Request()
        self.close()
        save, stop, again = map(bool, self._flags.tolist())
        if not (save or stop):
            return Request()
        reasons: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, self._sent.reasons)
        return Request(save, stop, again, tuple(dict.fromkeys(one for rank in reasons for one in rank)))
