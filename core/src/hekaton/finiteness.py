"""Whether the weights that a run leaves are still numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from hekaton.checkpoint.tensors.state import not_finite
from hekaton.errors import TrainingError

CURE = "lower optimizer.lr, lengthen lr_scheduler.warmup_steps, or set training.max_norm"
"""What helps against divergence."""


def check_weights(parts: Sequence[nn.Module], *, step: int, device: torch.device) -> None:
    """Check that every rank's weights are finite; every rank calls this.

    :param parts: the parts of the model that this rank holds.
    :raises TrainingError: on every rank, when a weight of any is not.
    """
    broken = any(not_finite(dict(part.named_parameters())) for part in parts)
    finite = torch.tensor(float(not broken), device=device)
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    if not finite.item():
        raise TrainingError(f"the run ended at step {step} with weights that are not finite", hint=CURE)
