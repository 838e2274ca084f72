"""Whether a run's numbers are still numbers: a warning at the first step that is not, an error at the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from hekaton.checkpoint.tensors.state import not_finite
from hekaton.errors import TrainingError

log = logging.getLogger("hekaton")

_CURE = "lower optimizer.lr, lengthen lr_scheduler.warmup_steps, or set training.max_norm"


class FiniteWatch:
    """Remembers, on the device, the first step whose gradient norm is not finite.

    The norm is that over all ranks, and not finite wherever the loss or a gradient is not. Nothing here waits
    for the device but :meth:`report`, which is called where a step's numbers are read in any case.
    """

    def __init__(self, device: torch.device, *, rank: int) -> None:
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._rank = rank
        self._said = False

    def note(self, step: int, grad_norm: torch.Tensor) -> None:
        """Take the gradient norm of a step: a scalar, the same on every rank."""
        is_first = ~torch.isfinite(grad_norm).to(self._first.device) & (self._first == 0)
        self._first = self._first + is_first * step

    def report(self) -> None:
        """Warn once, on rank 0, when there was such a step."""
        if self._said or self._rank != 0:
            return
        first = int(self._first.item())
        if first:
            self._said = True
            log.warning(
                "WARNING: step %d: the gradient norm is not finite (NaN or infinite), the run diverges: %s",
                first,
                _CURE,
            )


def check_weights(parts: Sequence[nn.Module], *, step: int, device: torch.device) -> None:
    """Check that every rank's weights are finite; every rank calls this.

    :param parts: the parts of the model that this rank holds.
    :raises TrainingError: on every rank, when a weight of any is not.
    """
    broken = any(not_finite(dict(part.named_parameters())) for part in parts)
    finite = torch.tensor(float(not broken), device=device)
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite.item():
        raise TrainingError(f"the run ended at step {step} with weights that are not finite", hint=_CURE)
