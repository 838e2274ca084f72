"""When a run looks for faults that raise nothing: as ``[fault]`` says, by default not at all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.fault.replay import Replay
    from hekaton.fault.replicas import ReplicaCheck
    from hekaton.forward_backward import RunMicrobatch


class FaultChecks:
    """The checks of a run that are switched on. What is off is not even imported."""

    def __init__(self, assembled: Assembled) -> None:
        self._settings = assembled.config.fault
        self._replicas: ReplicaCheck | None = None
        self._replay: Replay | None = None
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

    def replay(self, step: int) -> RunMicrobatch | None:
        """What runs the first microbatch of a step, ``None`` where nothing is to be repeated.

        :param step: the step to come, from 1.
        """
        if self._replay is None or step % self._settings.replay_every:
            return None
        return partial(self._replay, step)

    def after_step(self, step: int) -> None:
        """Look at what the optimizer left.

        :param step: the step that is done, from 1.
        :raises TrainingError: the same on every rank.
        """
        if self._replicas is not None and step % self._settings.compare_replicas_every == 0:
            self._replicas(step)
