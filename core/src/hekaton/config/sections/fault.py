"""What a run looks for that raises no error by itself."""

from typing import Annotated, ClassVar

from pydantic import Field

from hekaton.config.base import AtResumeMeaning, SectionModel

Steps = Annotated[int, Field(ge=0)]


class FaultSection(SectionModel):
    """Faults that raise no error by themselves: what is looked for, and how often."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    compare_replicas_every: Steps = 0
    """Steps from one comparison to the next of what several ranks hold alike, bit by bit: parameters, buffers
    and the optimizer's moments. A difference names tensor, ranks and hosts, and ends the run; 0 compares
    nothing."""
    replay_every: Steps = 0
    """Steps from one to the next whose first microbatch is computed twice, before the optimizer runs. Loss,
    gradients and buffers must have the same bits both times, or the run ends; on CUDA it needs
    ``debug.deterministic``. 0 repeats nothing."""
