"""The pipeline schedules of :mod:`torch.distributed.pipelining`, and what each needs."""

SINGLE_STAGE = ("1F1B", "GPipe")
"""Schedules with one stage per rank."""

V_SHAPED = ("ZBVZeroBubble", "DualPipeV")
"""Schedules whose stages run down the ranks and up again, so that each rank has one from either half."""

SPLIT_BACKWARD = ("InterleavedZeroBubble", *V_SHAPED)
"""Schedules that compute the gradients of inputs and of weights apart, going backward twice."""

SCHEDULES = (*SINGLE_STAGE, "Interleaved1F1B", "InterleavedZeroBubble", "LoopedBFS", *V_SHAPED)


def microbatches_needed(schedule: str, degree: int) -> int:
    """The least number of microbatches that a schedule runs with on ``degree`` ranks."""
    if schedule == "GPipe":
        return 1
    return 2 * degree if schedule == "DualPipeV" else degree
