"""Activation checkpointing: recompute a block's activations in backward instead of keeping them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.checkpoint import checkpoint

from hekaton.parallel.plan import ParallelPlan, blocks

if TYPE_CHECKING:
    from hekaton.config.sections import ActivationCheckpointSection


def apply_activation_checkpoint(
    model: nn.Module, plan: ParallelPlan, settings: ActivationCheckpointSection
) -> None:
    """Checkpoint the blocks that ``settings.mode`` selects: none, all of them, or every n-th.

    The block's own ``forward`` is replaced, rather than the block wrapped, so that names stay clean.
    """
    if settings.mode == "none":
        return
    every = int(settings.selective_ac_option) if settings.mode == "selective" else 1
    for number, (_, block) in enumerate(blocks(model, plan), start=1):
        if number % every == 0:
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=settings.preserve_rng_state,
                determinism_check=settings.determinism_check,
                early_stop=settings.early_stop,
                debug=settings.debug,
            )
