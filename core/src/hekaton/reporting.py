"""Where a run's numbers are shown: the console, and the loggers that it names."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hekaton.accounting import has_done_steps
from hekaton.assembly import Assembled
from hekaton.contributions import Logger
from hekaton.errors import ConfigError, HekatonError
from hekaton.metrics import Console, ImageLogger, MetricLogger, log_all
from hekaton.optional_logger import NoAnswer, OptionalLogger
from hekaton.surroundings import writing_to

log = logging.getLogger("hekaton")

_UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)
"""Errors of a server; other errors of the system are those of the folder."""


class Reporter(contextlib.AbstractContextManager["Reporter"]):
    """The console and this rank's loggers, closed when the context ends."""

    def __init__(self, assembled: Assembled, *, step: int, more: Sequence[MetricLogger] = ()) -> None:
        """:param step: steps that are done already; :param more: loggers beside those that are configured."""
        self._assembled = assembled
        self._settings = assembled.config.metrics
        self._seconds = assembled.config.fault.logger_seconds
        self._steps = assembled.config.training.steps
        self._step = step
        self._more = more
        self._ending = contextlib.ExitStack()
        self._named = contextlib.ExitStack()
        self._loggers: list[MetricLogger] = []
        self._left_out: set[str] = set()
        self._was_idle = False
        folder = Path(assembled.config.job.dump_folder)
        self._is_new = step == 0 and not (assembled.config.checkpoint.enable and has_done_steps(folder))

    def __enter__(self) -> Reporter:
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._named)
            loggers = self._open_loggers(self._named)
            self._console = Console(
                steps=self._steps, step=self._step, colour=not self._settings.disable_color_printing
            )
            opened.callback(self._console.close)
            self._loggers = [self._console, *loggers, *self._more]
            self._ending = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()

    def due(self, step: int) -> bool:
        """Whether this step's numbers are shown; those of the first step always are."""
        return step == self._steps or step % self._settings.log_freq == 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show numbers, and warn once where nothing is learned."""
        is_idle = metrics.get("loss") == metrics.get("grad_norm") == 0.0
        if is_idle and not self._was_idle and self._assembled.process.rank == 0:
            log.warning(
                "step %d: loss and gradient are 0, nothing is learned: the batch may have no target "
                "(hekaton data show FILE says which tokens are)",
                step,
            )
        self._was_idle |= is_idle
        log_all(self._loggers, step, metrics)

    def log_images(self, step: int, images: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """For the loggers that take images."""
        for logger in self._loggers:
            if isinstance(logger, ImageLogger):
                logger.log_images(step, images)

    def go_back(self, step: int) -> None:
        """The run continues after ``step`` once more: what was logged after it is no longer shown."""
        self._left_out |= {
            one.name for one in self._loggers if isinstance(one, OptionalLogger) and one.failed
        }
        self._named.close()
        self._step, self._is_new = step, False
        self._loggers[1:] = [*self._open_loggers(self._named), *self._more]
        self._console.advance(step)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._console.advance(step)

    def _open_loggers(self, opened: contextlib.ExitStack) -> list[MetricLogger]:
        """The loggers of this rank, without the console."""
        settings, process = self._settings, self._assembled.process
        if process.rank != 0 and not settings.save_for_all_ranks:
            return []
        loggers: list[MetricLogger] = []
        for name in self._assembled.config.logger_names():
            if name in self._left_out:
                continue
            folder = Path(self._assembled.config.job.dump_folder)
            if self._assembled.plugins.get(Logger, name).place == "logs":
                folder /= settings.save_tb_folder
            if settings.save_for_all_ranks:
                folder /= f"rank_{process.rank}"
            try:
                with writing_to(folder):
                    logger = OptionalLogger(name, partial(self._opened, name, folder), seconds=self._seconds)
            except NoAnswer as error:
                self._leave_out(name, str(error))
                continue
            except HekatonError as error:
                if self._is_new:
                    raise  # whoever starts a run can cure it; nobody may be there when it starts again
                self._leave_out(name, error.message)
                continue
            opened.callback(logger.close)
            logger.resume(self._step)
            loggers.append(logger)
        return loggers

    def _leave_out(self, name: str, why: str) -> None:
        log.warning("logger '%s' is left out: %s", name, why)
        self._left_out.add(name)

    def _opened(self, name: str, folder: Path) -> MetricLogger:
        """:raises ConfigError: for what the library behind a logger says to its settings."""
        try:
            built: MetricLogger = self._assembled.build(Logger, name, folder)
        except HekatonError:
            raise
        except Exception as e:
            if isinstance(e, OSError) and not isinstance(e, _UNREACHABLE):
                raise
            said = f"{type(e).__name__}: {str(e).strip()}"
            raise ConfigError(
                f"logger '{name}' cannot be opened: {said}", hint=f"leave '{name}' out of metrics.loggers"
            ) from e
        return built
