"""The one order in which a model is parallelised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.activation import apply_activation_checkpoint
from hekaton.parallel.fsdp import apply_fsdp, needs_fsdp
from hekaton.parallel.plan import ParallelPlan, blocks

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.config.sections import CompileSection


def parallelize(
    model: nn.Module, plan: ParallelPlan, meshes: Meshes, dims: ParallelDims, config: JobConfig
) -> list[nn.Module]:
    """Cut, wrap and shard a model on the meta device, in this order.

    :param model: the whole model, after the converters.
    :returns: the parts of the model that this rank runs; without a pipeline there is one.
    """
    model_parts = [model]
    for part in model_parts:
        apply_activation_checkpoint(part, plan, config.activation_checkpoint)
        if config.compile.enable and "model" in config.compile.components:
            apply_compile(part, plan, config.compile)
        if needs_fsdp(dims, config.training):
            apply_fsdp(part, plan, meshes, dims, training=config.training, parallelism=config.parallelism)
    return model_parts


def apply_compile(model: nn.Module, plan: ParallelPlan, settings: CompileSection) -> None:
    """Compile each block in place: one graph serves all of them, and names stay as they are."""
    for _, block in blocks(model, plan):
        block.compile(backend=settings.backend, fullgraph=True)
