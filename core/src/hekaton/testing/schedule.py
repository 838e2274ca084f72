"""Does a learning-rate schedule keep its contract: a function of the steps done, and of nothing else?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hekaton.config.sections import LRSchedulerSection


def check_schedule(
    build: Callable[[Any, LRSchedulerSection, int], Callable[[int], float]],
    *,
    section: Any = None,
    settings: LRSchedulerSection | None = None,
    training_steps: int = 100,
) -> None:
    """Ask a schedule for the factor before each step, in order and out of order, as a run that resumes does.

    Factors are finite numbers, none is below 0 and some are above; a step has the same one whenever it is
    asked for.

    :param build: as in the record, ``build(section, settings, training_steps)``.
    :raises AssertionError: saying what is wrong.
    """
    settings = settings or LRSchedulerSection(warmup_steps=10)
    schedule = build(section, settings, training_steps)
    factors = [schedule(steps_done) for steps_done in range(training_steps)]
    for steps_done, factor in enumerate(factors):
        right = isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0
        assert right, f"the factor after {steps_done} steps is {factor!r}, not a finite number from 0 on"
    assert any(factors), "every factor is 0: nothing would be trained"
    again = build(section, settings, training_steps)
    for steps_done in reversed(range(training_steps)):
        assert again(steps_done) == factors[steps_done], (
            f"the factor after {steps_done} steps depends on what was asked for before it"
        )
