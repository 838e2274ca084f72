"""How a run ends that something outside ends, and what it looks for that raises no error by itself."""

from typing import Annotated, ClassVar

from pydantic import Field

from hekaton.config.base import AtResumeMeaning, SectionModel

Steps = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class FaultSection(SectionModel):
    """Ends that come from outside, and faults that raise no error by themselves."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    stop_seconds: Seconds = 600.0
    """Seconds that a run has to end its step, to save and to close, after SIGTERM, SIGUSR1 or SIGINT. One
    that is still there then, as in a collective that hangs, shows where its threads are and ends with
    128 + signal. 0 waits for as long as it takes. torchrun itself waits 30 s."""
    save_before_seconds: Seconds = 0.0
    """Save and stop that many seconds before the job's end, where it is known: SLURM says it in
    ``SLURM_JOB_END_TIME``. 0 waits for the signal."""

    compare_replicas_every: Steps = 0
    """Steps from one comparison to the next of what several ranks hold alike, bit by bit: parameters, buffers
    and the optimizer's moments. A difference names tensor, ranks and hosts, and ends the run; 0 compares
    nothing."""
    replay_every: Steps = 0
    """Steps from one to the next whose first microbatch is computed twice, before the optimizer runs. Loss,
    gradients and buffers must have the same bits both times, or the run ends; on CUDA it needs
    ``debug.deterministic``. 0 repeats nothing."""
