"""The learning-rate schedule: a function of the steps done, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

from hekaton.config.sections import LRSchedulerSection


def build(section: None, settings: LRSchedulerSection, training_steps: int) -> Callable[[int], float]:
    """Linear warmup, then 1 / sqrt(step).

    :param settings: the run's ``[lr_scheduler]``; :returns: steps done -> factor on ``optimizer.lr``.
    """
    warmup = max(1, settings.warmup_steps)

    def factor(steps_done: int) -> float:
        step = steps_done + 1
        return step / warmup if step < warmup else (warmup / step) ** 0.5

    return factor
