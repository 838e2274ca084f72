"""Where a process is in its run, for whoever has to say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Whereabouts:
    """The step and the phase that this process is in; written by the trainer, read when something fails.

    :param step: ``None`` before the first.
    :param since: when the process began to work on this run, in seconds since the epoch, if before now.
    :param follow: each is called with the phase that is entered.
    """

    step: int | None = None
    phase: str = "start"
    since: float | None = None
    follow: list[Callable[[str], None]] = field(default_factory=list)

    def at(self, phase: str, *, step: int | None = None) -> None:
        """Enter a phase, of the same step where none is given."""
        self.phase = phase
        if step is not None:
            self.step = step
        for follower in self.follow:
            follower(phase)

    def __str__(self) -> str:
        return f"{self._when} ({self.phase})"

    @property
    def _when(self) -> str:
        return "before the first step" if self.step is None else f"in step {self.step}"
