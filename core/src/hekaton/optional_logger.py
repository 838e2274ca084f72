"""A logger that a run does without once it has failed, or does not answer."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.metrics import ImageLogger, MetricLogger, ResumableLogger

log = logging.getLogger("hekaton")


class NoAnswer(Exception):
    """A call has not returned in time."""


class OptionalLogger:
    """A logger whose first error is reported: it is not called again then, but closed.

    All calls run on one thread of their own. One that does not return in time is reported and left there, and
    the logger is not closed.

    :param build: makes the logger; the first call.
    :param seconds: that a call may take; 0 waits for as long as it takes.
    :ivar failed: whether it is left out.
    """

    def __init__(self, name: str, build: Callable[[], MetricLogger], *, seconds: float = 0.0) -> None:
        """:raises NoAnswer: when it is not made in time; otherwise what ``build`` raises."""
        self.name = name
        self.failed = False
        self._seconds = seconds
        self._hangs = False
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"hekaton logger {name}", daemon=True)
        self._thread.start()
        try:
            self._logger: MetricLogger = self._call(build)
        except BaseException:
            self._calls.put(None)
            raise

    def resume(self, step: int) -> None:
        logger = self._logger
        if isinstance(logger, ResumableLogger):
            self._attempt(lambda: logger.resume(step), "when the run started")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._attempt(lambda: self._logger.log(step, metrics), f"at step {step}")

    def log_images(self, step: int, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        logger = self._logger
        if isinstance(logger, ImageLogger):
            self._attempt(lambda: logger.log_images(step, images), f"at step {step}")

    def close(self) -> None:
        if self._hangs:
            return
        try:
            self._call(self._logger.close)
        except NoAnswer as e:
            log.warning("logger '%s' failed to close: %s", self.name, e)
            return
        except (Exception, SystemExit) as e:
            if not self.failed:
                log.warning("logger '%s' failed to close: %s: %s", self.name, type(e).__name__, e)
        self._calls.put(None)
        self._thread.join()

    def _attempt(self, call: Callable[[], None], when: str) -> None:
        if self.failed:
            return
        try:
            self._call(call)
        except (Exception, SystemExit) as e:
            self.failed = True
            said = str(e) if isinstance(e, NoAnswer) else f"{type(e).__name__}: {e}"
            log.warning("logger '%s' failed %s and is left out from here on: %s", self.name, when, said)

    def _call(self, call: Callable[[], Any]) -> Any:
        """:raises NoAnswer: when it has not returned in time; otherwise what it raises."""
        outcome: Future[Any] = Future()
        self._calls.put((call, outcome))
        wait([outcome], timeout=self._seconds or None)
        if not outcome.done():
            self._hangs = True
            raise NoAnswer(f"no answer for {self._seconds:g} s (fault.logger_seconds)")
        return outcome.result()

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, outcome = given
            try:
                outcome.set_result(call())
            except BaseException as e:
                outcome.set_exception(e)
