"""Where a run's numbers are shown: the console, and the loggers that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from hekaton.assembly import Assembled
from hekaton.contributions import Logger
from hekaton.metrics import Console, MetricLogger, ResumableLogger, log_all
from hekaton.surroundings import writing_to


class Reporter(contextlib.AbstractContextManager["Reporter"]):
    """The console and this rank's loggers, closed when the context ends."""

    def __init__(self, assembled: Assembled, *, step: int) -> None:
        """:param step: steps that are done already."""
        self._assembled = assembled
        self._settings = assembled.config.metrics
        self._steps = assembled.config.training.steps
        self._step = step
        self._ending = contextlib.ExitStack()
        self._loggers: list[MetricLogger] = []

    def __enter__(self) -> Reporter:
        with contextlib.ExitStack() as opened:
            loggers = self._open_loggers(opened)
            self._console = Console(
                steps=self._steps, step=self._step, colour=not self._settings.disable_color_printing
            )
            opened.callback(self._console.close)
            self._loggers = [self._console, *loggers]
            self._ending = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()

    def due(self, step: int) -> bool:
        """Whether this step's numbers are shown; those of the first step always are."""
        return step == self._steps or step % self._settings.log_freq == 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        log_all(self._loggers, step, metrics)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._console.advance(step)

    def _open_loggers(self, opened: contextlib.ExitStack) -> list[MetricLogger]:
        """The loggers of this rank, without the console."""
        settings, process = self._settings, self._assembled.process
        if process.rank != 0 and not settings.save_for_all_ranks:
            return []
        folder = Path(self._assembled.config.job.dump_folder, settings.save_tb_folder)
        if settings.save_for_all_ranks:
            folder /= f"rank_{process.rank}"
        names = dict.fromkeys([*settings.loggers, *(["tensorboard"] if settings.enable_tensorboard else [])])
        loggers: list[MetricLogger] = []
        with writing_to(folder):
            for name in names:
                loggers.append(self._assembled.build(Logger, name, folder))
                opened.callback(loggers[-1].close)
                if isinstance(loggers[-1], ResumableLogger):
                    loggers[-1].resume(self._step)
        return loggers
