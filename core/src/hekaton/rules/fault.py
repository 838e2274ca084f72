"""Rules for ``[fault]``: what is looked for can be found."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hekaton.errors import HekatonError
from hekaton.rules.run import Run
from hekaton.stop_signals import known_end


def replay_repeats(run: Run) -> Iterator[HekatonError]:
    """Algorithms that give other bits each time would be taken for broken hardware."""
    if run.config.fault.replay_every and run.device_type == "cuda" and not run.config.debug.deterministic:
        yield run.violation(
            f"fault.replay_every = {run.config.fault.replay_every} needs algorithms that repeat to the bit, "
            "and several of CUDA's do not",
            "fault.replay_every",
            "debug.deterministic",
            hint="set debug.deterministic = true",
        )


def faults_are_looked_for(run: Run) -> Iterator[str]:
    """What has no effect here says so before the run."""
    fault, steps = run.config.fault, run.config.training.steps
    end = known_end()
    if fault.save_before_seconds and end is None:
        yield (
            "fault.save_before_seconds: no effect where the end of the job is not known: "
            "SLURM_JOB_END_TIME is not set"
        )
    elif end is not None and (left := end - time.time()) < fault.save_before_seconds:
        yield (
            f"fault.save_before_seconds = {fault.save_before_seconds:g}, and the job ends in "
            f"{max(0.0, left):.0f} s: the run saves and stops after its first step"
        )
    for name in ("compare_replicas_every", "replay_every", "stragglers_every"):
        if getattr(fault, name) > steps:
            yield f"fault.{name} = {getattr(fault, name)} is more than training.steps = {steps}: no effect"
    if 0 < fault.stragglers_every <= steps and run.world_size == 1:
        yield "fault.stragglers_every: no effect on one process: there is nothing to compare it with"
    degrees = run.config.parallelism
    if not 0 < fault.compare_replicas_every <= steps or run.world_size is None:
        return
    if run.world_size == 1:
        yield "fault.compare_replicas_every: no effect on one process: nothing has a second copy"
    elif degrees.data_parallel_replicate_degree == degrees.tensor_parallel_degree == 1:
        yield (
            "fault.compare_replicas_every: no parameter has a second copy (data_parallel_replicate_degree "
            "and tensor_parallel_degree are 1): only buffers and the optimizer's counters are compared"
        )


def rollback_has_checkpoints(run: Run) -> Iterator[HekatonError]:
    """A run goes back to what it saved itself."""
    fault, checkpoint = run.config.fault, run.config.checkpoint
    for name, value in (("nonfinite", fault.nonfinite), ("spike", fault.spike)):
        if value == "rollback" and (not checkpoint.enable or checkpoint.load_only):
            yield run.violation(
                f'fault.{name} = "rollback" needs checkpoints that this run saves',
                f"fault.{name}",
                "checkpoint.enable" if not checkpoint.enable else "checkpoint.load_only",
                hint="set checkpoint.enable = true and checkpoint.load_only = false",
            )
