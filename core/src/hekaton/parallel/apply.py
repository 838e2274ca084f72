"""The one order in which a model is parallelised."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.errors import PluginError
from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.activation import (
    apply_activation_checkpoint,
    recomputes_by_operator,
    set_memory_budget,
)
from hekaton.parallel.context import ContextStrategy, apply_context_parallel, inner_attentions
from hekaton.parallel.experts import has_own_mesh, prepare_experts
from hekaton.parallel.fsdp import apply_fsdp, needs_fsdp
from hekaton.parallel.pipeline import StageLayout, cut
from hekaton.parallel.plan import ParallelPlan, blocks
from hekaton.parallel.tensor import (
    StyleMaker,
    TensorContext,
    apply_tensor_parallel,
    enable_async_tensor_parallel,
)
from hekaton.torch_versions import log_slow_guards

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.config.sections import CompileSection


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A plan made concrete for one run: every choice that the steps below carry out.

    :param plan: the model's plan.
    :param styles: module name -> what makes its tensor-parallel style; empty without tensor parallel.
    :param tensor: the switches of the styles.
    :param context: the context-parallel strategy, ``None`` without context parallel.
    :param experts: name of a layer of experts -> what makes the style by which they are cut.
    :param dispatcher: brings tokens to experts on other ranks; ``None`` where there are none.
    :param stages: the pipeline's stages, ``None`` without a pipeline.
    :param parallelize: the model's own function in place of the steps that follow the pipeline, see
        ``TrainSpec.parallelize``.
    """

    plan: ParallelPlan
    styles: Mapping[str, StyleMaker]
    tensor: TensorContext
    context: ContextStrategy | None = None
    experts: Mapping[str, StyleMaker] = field(default_factory=dict)
    dispatcher: Callable[..., Any] | None = None
    stages: StageLayout | None = None
    parallelize: Callable[[nn.Module, Layout, Meshes, ParallelDims, JobConfig], None] | None = None


def parallelize(
    model: nn.Module, layout: Layout, meshes: Meshes, dims: ParallelDims, config: JobConfig
) -> dict[int, nn.Module]:
    """Cut, wrap and shard a model on the meta device, in this order.

    :param model: the whole model, after the converters.
    :returns: stage -> the part of the model that this rank runs; without a pipeline stage 0 is all of it.
    """
    parts = {0: model}
    every_block = [name for name, _ in blocks(model, layout.plan)]
    if layout.stages is not None:
        rank = meshes.dense["pp"].get_local_rank()
        parts = {
            stage: cut(model, layout.stages, layout.stages.modules[stage])
            for stage in layout.stages.of_rank(rank)
        }
    set_memory_budget(config.activation_checkpoint, Path(config.job.dump_folder, "memory_budget_pareto"))
    compiled = config.compile.enable and "model" in config.compile.components
    if layout.experts and has_own_mesh(dims):
        meshes.experts  # noqa: B018 (made by all processes together, also those whose stage has no experts)
    for part in parts.values():
        if layout.parallelize is not None:
            returned: Any = layout.parallelize(part, layout, meshes, dims, config)
            if returned is not None:
                raise PluginError(
                    f"TrainSpec.parallelize returned {type(returned).__name__}: it changes the part in place "
                    "and returns nothing"
                )
            continue
        if dims.tp > 1:
            apply_tensor_parallel(part, layout.styles, meshes.dense["tp"], layout.tensor)
            if config.parallelism.enable_async_tensor_parallel:
                enable_async_tensor_parallel(meshes.dense["tp"])
        if layout.context is not None:
            apply_context_parallel(part, layout.plan.context, layout.context)
        prepare_experts(
            part,
            layout.experts,
            meshes,
            dims,
            dispatcher=layout.dispatcher,
            context=layout.tensor,
            even=config.debug.moe_force_load_balance,
        )
        apply_activation_checkpoint(
            part, layout.plan, config.activation_checkpoint, every_block=every_block, compiled=compiled
        )
        if compiled:
            # torch 2.13's compiler fails on a block of DTensors that holds all of its recomputation.
            inside = dims.tp > 1 and not recomputes_by_operator(config.activation_checkpoint)
            apply_compile(part, layout, config.compile, inside_checkpoint=inside)
        if needs_fsdp(dims, config.training):
            apply_fsdp(
                part, layout.plan, meshes, dims, training=config.training, parallelism=config.parallelism
            )
    return parts


def apply_compile(
    model: nn.Module, layout: Layout, settings: CompileSection, *, inside_checkpoint: bool = False
) -> None:
    """Compile each block in place: one graph serves all of them, and names stay as they are.

    An inner attention whose context-parallel strategy cannot be traced stays as it is, as do layers of
    experts, whose shapes depend on the values of tokens, and the block is compiled around them.

    :param inside_checkpoint: of a recomputed block, compile what is recomputed, which then runs twice,
        instead of forward and recomputation as one.
    """
    whole = not layout.experts and (layout.context is None or layout.context.traceable)
    for name in layout.experts:
        with contextlib.suppress(AttributeError):  # on another stage
            layer = model.get_submodule(name)
            layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[no-untyped-call]
    if layout.context is not None and not layout.context.traceable:
        for inner in inner_attentions(model, layout.plan.context):
            inner.forward = torch.compiler.disable(inner.forward)  # type: ignore[no-untyped-call]
    block: Any
    options = compile_options(settings)
    for _, block in blocks(model, layout.plan):
        if inside_checkpoint and "recomputed_forward" in vars(block):
            block.recomputed_forward = torch.compile(block.recomputed_forward, fullgraph=whole, **options)
        else:
            block.compile(fullgraph=whole, **options)


def compile_options(settings: CompileSection) -> dict[str, Any]:
    """What a run's calls of ``torch.compile`` have in common."""
    log_slow_guards()
    mode = {} if settings.mode == "default" else {"mode": settings.mode}  # other backends take none
    return {"backend": settings.backend, **mode}
