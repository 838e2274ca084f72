"""How a run ends that something outside ends, and what it looks for that raises no error by itself."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hekaton.config.base import LONGEST_SECONDS, AtResume, AtResumeMeaning, OnlyWith, SectionModel

Steps = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=LONGEST_SECONDS, allow_inf_nan=False)]
Policy = Literal["abort", "skip", "rollback"]
LEAVES_OUT = ("skip", "rollback")


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

    logger_seconds: Seconds = 60.0
    """Seconds that a call of a logger may take, the one that opens it included. One that takes longer is
    reported, and the logger is left out from there on. Other ranks wait meanwhile, for
    ``comm.train_timeout_seconds``. 0 waits for as long as it takes."""

    hang_seconds: Seconds = 600.0
    """A process that is in one phase of a step (data, forward and backward, optimizer, save, validation,
    evaluation) for longer, after the first step, writes where its threads are to ``hangs`` in the run folder,
    and the log says which ranks are where. 0 looks for nothing."""
    hang: Annotated[Literal["report", "abort"], OnlyWith("hang_seconds", above=0)] = "report"
    """What happens then: ``"abort"`` ends the run with status 1."""
    stragglers_every: Steps = 0
    """Steps from one comparison of the ranks to the next: how long each computes and waits for data in a
    step, by torch's profiler, without the collectives in which it waits for others. A rank that is slow in
    two comparisons one after the other is named in the log; 0 compares nothing."""
    straggler_factor: Annotated[
        float, Field(gt=1, allow_inf_nan=False), OnlyWith("stragglers_every", above=0)
    ] = 1.5
    """Times the median, among ranks of the same pipeline stage, from which on a rank is slow; less than 10 ms
    above the median is not."""

    nonfinite: Annotated[Policy, AtResume("notice")] = "abort"
    """What to do with a step whose gradient norm is NaN or infinite, or that ``replay_every`` finds computed
    wrongly; its gradients never reach the optimizer.
    ``"abort"`` ends the run with an error: a resume starts from the last checkpoint. ``"skip"`` changes no
    weights in that step and goes on with the next. ``"rollback"`` loads the last good checkpoint and goes on
    with the data after the bad step. What is left out is in ``skipped_data.jsonl`` in the run folder, row by
    row. On CUDA the host waits for no number of a step with ``"abort"`` and ``"skip"`` and a fused optimizer,
    and learns of a bad step one step later; otherwise it waits once in each step."""
    spike_factor: Annotated[float, Field(ge=0, allow_inf_nan=False), AtResume("notice")] = 0.0
    """A loss of more than so many times the median of recent steps is a spike; 0 looks for none. The host
    then waits for the loss in each step."""
    spike: Annotated[Policy, OnlyWith("spike_factor", above=0), AtResume("notice")] = "abort"
    """What to do with a step whose loss is a spike: as for ``nonfinite``."""
    spike_window: Annotated[int, Field(ge=5), OnlyWith("spike_factor", above=0), AtResume("notice")] = 100
    """Steps that the median is of; bad ones do not count. There are no spikes before it has five."""
    bad_steps_in_a_row: Annotated[
        int, Field(ge=0), OnlyWith("nonfinite", LEAVES_OUT), OnlyWith("spike", LEAVES_OUT)
    ] = 10
    """Bad steps that are left out one after another, or rollbacks before the run is past the last bad step;
    one more ends the run with an error."""

    compare_replicas_every: Steps = 0
    """Steps from one comparison to the next of what several ranks hold alike, bit by bit: parameters, buffers
    and the optimizer's moments. A difference names tensor, ranks and hosts, and ends the run, or with
    ``nonfinite = "rollback"`` takes it back to a step at which all was equal; 0 compares nothing."""
    replay_every: Steps = 0
    """Steps from one to the next whose first microbatch is computed twice, before the optimizer runs. Loss,
    gradients and buffers must have the same bits both times, or the step is bad: ``nonfinite`` says what
    happens; on CUDA it needs ``debug.deterministic``. 0 repeats nothing."""
