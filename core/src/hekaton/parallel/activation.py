"""Activation checkpointing: recompute a block's activations in backward instead of keeping them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hekaton.parallel.plan import ParallelPlan, blocks
from hekaton.parallel.selective import recomputed_linears, selective_contexts, weight_shapes

if TYPE_CHECKING:
    from hekaton.config.sections import ActivationCheckpointSection


def apply_activation_checkpoint(
    model: nn.Module,
    plan: ParallelPlan,
    settings: ActivationCheckpointSection,
    *,
    every_block: Sequence[str],
    compiled: bool = False,
) -> None:
    """Checkpoint the blocks that ``settings.mode`` selects: none, all of them, every n-th, or by operator.

    The block's own ``forward`` is replaced, rather than the block wrapped, so that names stay clean.

    :param model: the model, or the part of it that a pipeline stage runs.
    :param every_block: names of the whole model's blocks in order, so that every n-th is the same one
        wherever the pipeline is cut.
    :param compiled: whether the blocks are compiled afterwards.
    """
    if settings.mode not in ("full", "selective"):
        return
    by_operator = recomputes_by_operator(settings)
    every = int(settings.selective_ac_option) if settings.mode == "selective" and not by_operator else 1
    recompute = partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=settings.preserve_rng_state,
        determinism_check=settings.determinism_check,
        early_stop=settings.early_stop,
        debug=settings.debug,
    )
    if by_operator:
        linears = recomputed_linears(model, settings.per_op_sac_force_recompute_mm_shapes_by_fqns)
        shapes = weight_shapes(list(linears.values()))
        contexts = selective_contexts(settings.save_ops, shapes, compiled=compiled)
        recompute = partial(recompute, context_fn=contexts)

    def forward(block: Any, *inputs: Any, **options: Any) -> Any:
        return recompute(block.recomputed_forward, *inputs, **options)

    # One function for all blocks, which finds the rest on its block: the compiler makes one graph of it,
    # where it finds nothing of ours to compile in a partial of torch's checkpoint.
    block: Any
    for name, block in blocks(model, plan):
        if (every_block.index(name) + 1) % every == 0:
            block.recomputed_forward = block.forward
            block.forward = MethodType(forward, block)


def recomputes_by_operator(settings: ActivationCheckpointSection) -> bool:
    """Whether operators are selected, rather than whole blocks."""
    return settings.mode == "selective" and settings.selective_ac_option == "op"


def set_memory_budget(settings: ActivationCheckpointSection, folder: Path) -> None:
    """Tell the compiler what share of the activations it may keep: all, unless the mode says otherwise.

    :param folder: where ``visualize_memory_budget_pareto`` writes its charts.
    """
    from torch._functorch import config

    budgeted = settings.mode == "memory_budget"
    config.activation_memory_budget = settings.memory_budget if budgeted else 1.0
    config.visualize_memory_budget_pareto = budgeted and settings.visualize_memory_budget_pareto
    config.memory_budget_pareto_dir = str(folder)
