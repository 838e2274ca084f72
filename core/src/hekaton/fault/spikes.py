"""Losses far above those of recent steps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

FEWEST = 5
"""Losses that a median needs."""


class Spikes:
    """The losses of recent good steps, and which loss is a spike after them.

    :param factor: times the median of recent losses from which on a loss is a spike; 0 for no spikes.
    :param window: losses that the median is of.
    """

    def __init__(self, *, factor: float, window: int) -> None:
        self._factor = factor
        self._losses: deque[float] = deque(maxlen=window)

    @property
    def usual(self) -> float:
        """The median of recent losses."""
        return statistics.median(self._losses)

    def has(self, loss: float) -> bool:
        """Whether a loss is a spike; one that is not finite is, once there is a median. Of a median that is
        not above 0 no multiple says what is far above it: there are no spikes then."""
        if not self._factor or len(self._losses) < FEWEST or self.usual <= 0:
            return False
        return not loss <= self._factor * self.usual

    def add(self, loss: float) -> None:
        """Count the loss of a good step; one that is not finite, before there is a median, says nothing."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def losses(self) -> list[float]:
        """Oldest first: JSON has all their bits."""
        return list(self._losses)

    def put_back(self, losses: Iterable[float]) -> None:
        """Have those of an earlier moment in place of the present ones: the newest that the window holds."""
        self._losses.clear()
        self._losses.extend(losses)
