"""When a run looks for faults that raise nothing: as ``[fault]`` says, by default not at all."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from hekaton.errors import TrainingError

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.failures.whereabouts import Whereabouts
    from hekaton.fault.replay import Replay
    from hekaton.fault.replicas import ReplicaCheck
    from hekaton.fault.stragglers import Stragglers
    from hekaton.forward_backward import RunMicrobatch


class FaultChecks:
    """The checks of a run that are switched on. What is off is not even imported."""

    def __init__(self, assembled: Assembled) -> None:
        self._settings = assembled.config.fault
        self._replicas: ReplicaCheck | None = None
        self._replay: Replay | None = None
        self.equal_at = 0
        """The last step after which replicas were found to be equal."""
        if self._settings.compare_replicas_every:
            from hekaton.fault.replicas import ReplicaCheck

            self._replicas = ReplicaCheck(
                assembled.parts,
                assembled.optimizers,
                assembled.meshes.dense,
                device=assembled.process.device,
            )
        if self._settings.replay_every:
            from hekaton.fault.replay import Replay

            self._replay = Replay(assembled.parts, device=assembled.process.device)
        self._stragglers: Stragglers | None = None
        if self._settings.stragglers_every and assembled.process.world_size > 1:
            from hekaton.fault.stragglers import Stragglers

            self._stragglers = Stragglers(
                every=self._settings.stragglers_every,
                factor=self._settings.straggler_factor,
                stage=assembled.meshes.dense["pp"].get_local_rank(),
                cuda=assembled.process.device.type == "cuda",
            )

    def measured(self, step: int, where: Whereabouts) -> contextlib.AbstractContextManager[None]:
        """Around a step, which may be one of those in which the ranks are compared."""
        return (
            contextlib.nullcontext() if self._stragglers is None else self._stragglers.measured(step, where)
        )

    def replay(self, step: int) -> RunMicrobatch | None:
        """What runs the first microbatch of a step, ``None`` where nothing is to be repeated.

        :param step: the step to come, from 1.
        """
        if self._replay is None or step % self._settings.replay_every:
            return None
        return partial(self._replay, step)

    def replayed(self, step: int) -> TrainingError | None:
        """What is wrong with a step's gradients, before the optimizer uses them: the same on all ranks."""
        return self._replay.fault if self._replay is not None and self.replay(step) else None

    def after_step(self, step: int) -> TrainingError | None:
        """Look at what the optimizer left.

        :param step: the step that is done, from 1.
        :returns: what is wrong with it, the same on every rank.
        """
        if self._replicas is None or step % self._settings.compare_replicas_every:
            return None
        fault = self._replicas(step)
        if fault is None:
            self.equal_at = step
        return fault
