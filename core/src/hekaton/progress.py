"""How far a run is: a bar on a terminal, and one in the output of a notebook's cell."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

EVERY = 0.2
"""Seconds between two pictures of a notebook's bar: each is a message to the browser."""


class ProgressBar(Protocol):
    """Shows how many steps are done."""

    def show(self, step: int) -> None:
        """``step`` of the steps are done."""

    def close(self) -> None:
        """Leave the place to what comes after."""


def progress_bar(*, steps: int, step: int) -> ProgressBar | None:
    """A bar where there is somebody to look at it: ``None`` in a log.

    :param steps: of the run; :param step: those that are done already.
    """
    if sys.stderr.isatty():
        return _TerminalBar(steps=steps, step=step)
    display = _display_of_notebook()
    return None if display is None else _NotebookBar(display, steps=steps, step=step)


def _display_of_notebook() -> Any:
    """IPython's ``display`` in a process behind a notebook, ``None`` elsewhere; imports nothing."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if running is None or not hasattr(running, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    return display


class _TerminalBar:
    def __init__(self, *, steps: int, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=steps, completed=step)
        self._progress.start()

    def show(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._progress.stop()


class _NotebookBar:
    """One output that is replaced, as plain text where nothing shows HTML."""

    def __init__(self, display: Any, *, steps: int, step: int) -> None:
        self._steps, self._first, self._step = steps, step, step
        self._began = self._shown = time.monotonic()
        self._handle = display(self._picture(), raw=True, display_id=True)

    def show(self, step: int) -> None:
        self._step = step
        now = time.monotonic()
        if now - self._shown >= EVERY or step == self._steps:
            self._shown = now
            self._handle.update(self._picture(), raw=True)

    def close(self) -> None:
        self._handle.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        text = f"step {self._step} of {self._steps}"
        done = self._step - self._first
        if done > 0 and self._step < self._steps:
            left = round((time.monotonic() - self._began) / done * (self._steps - self._step))
            text += f", {left // 60}:{left % 60:02d} left"
        bar = f'<progress value="{self._step}" max="{self._steps}" style="width: 24em"></progress> {text}'
        return {"text/plain": text, "text/html": bar}
