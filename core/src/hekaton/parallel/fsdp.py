"""FSDP2 and HSDP: parameters, gradients and optimizer state sharded over the data-parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.experts import expert_layers, has_own_mesh
from hekaton.parallel.plan import ParallelPlan, blocks
from hekaton.parallel.selective import leave_gathering_out
from hekaton.parallel.ties import ties
from hekaton.patterns import with_owners

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard

    from hekaton.config.sections import ParallelismSection, TrainingSection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def needs_fsdp(dims: ParallelDims, training: TrainingSection) -> bool:
    """Whether anything is sharded, cast or offloaded: a single process in one precision is left plain.

    Under tensor parallel always, for FSDP also brings gradients to the placements of their parameters.
    """
    mixed = training.mixed_precision_param != training.dtype
    return dims.dp * dims.cp * dims.tp > 1 or mixed or training.enable_cpu_offload


def check_shardable(model: nn.Module, *, what: str) -> None:
    """:raises ConfigError: for parameters that FSDP cannot shard."""
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ConfigError(
            f"model '{what}' has parameters without a dim, which cannot be sharded: {', '.join(scalars[:5])}",
            hint="give them the shape (1,); as they are, the model trains on one process in one precision",
        )


def apply_fsdp(
    model: nn.Module,
    plan: ParallelPlan,
    meshes: Meshes,
    dims: ParallelDims,
    *,
    training: TrainingSection,
    parallelism: ParallelismSection,
) -> None:
    """Shard experts that have a mesh of their own, then each block, then the rest of the model.

    Gradients are summed, never averaged: the loss is already divided by the global number of targets.
    """
    # Half a second of imports, which a plain run does without.
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    mesh = meshes.dense["dp_replicate", "fsdp"] if dims.dp_replicate > 1 else meshes.dense["fsdp"]
    cuda = mesh.device_type == "cuda"
    precision = MixedPrecisionPolicy(
        param_dtype=DTYPES[training.mixed_precision_param],
        reduce_dtype=DTYPES[training.mixed_precision_reduce],
    )
    offload = CPUOffloadPolicy(pin_memory=cuda) if training.enable_cpu_offload else OffloadPolicy()
    reshard = _reshard_after_forward(parallelism, dims)
    experts = [layer.experts for _, layer in expert_layers(model, plan.experts)] if has_own_mesh(dims) else []
    for module in experts:
        fully_shard(
            module,
            mesh=meshes.experts["dp_replicate", "efsdp"]
            if dims.dp_replicate > 1
            else meshes.experts["efsdp"],
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=reshard,
            shard_placement_fn=partial(_widest_dim, degree=dims.efsdp),
        )
        leave_gathering_out(module)
    entangled = tied_across(model, plan)
    sharded = [module for _, module in blocks(model, plan) if module not in entangled]
    for block in sharded:
        block.register_forward_hook(_with_memory_of_its_own)
        fully_shard(
            block, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=reshard
        )
    # What is left (embeddings, last norm, output) is used at both ends of the step: gathering it anew for
    # backward, which starts where forward ended, would only cost time.
    root = fully_shard(
        model, mesh=mesh, mp_policy=precision, offload_policy=offload, reshard_after_forward=False
    )
    # One rank divides by nothing anyway, and given a factor it copies each gradient.
    if mesh.size() > 1 or (experts and dims.dp_replicate * dims.efsdp > 1):
        for module in (module for module in model.modules() if isinstance(module, FSDPModule)):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a plain sum: gloo has no other
    if not cuda:  # no streams: only what is asynchronous is gathered while the block before computes
        root._set_unshard_async_op(True)
    for before, after in pairwise(module for module in sharded if isinstance(module, FSDPModule)):
        before.set_modules_to_forward_prefetch([after, *_inside(after, experts)])
        after.set_modules_to_backward_prefetch([before, *_inside(before, experts)])


def _with_memory_of_its_own(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A copy of an output that is a view, as of a block that ends with a norm of a part of the sequence: FSDP
    warns of them, for its hooks are lost where a view is changed in place."""
    if torch.compiler.is_compiling() or not isinstance(output, torch.Tensor) or output._base is None:
        return output
    return output.clone()


def _inside(block: nn.Module, experts: Sequence[nn.Module]) -> list[Any]:
    return [module for module in block.modules() if module in experts]


def _widest_dim(parameter: nn.Parameter, *, degree: int) -> Shard:
    """The dim along which a tensor of experts is sharded: that of the experts, or where a rank has fewer of
    them than there are ranks to shard over, the first one that can be cut evenly."""
    from torch.distributed.tensor import DTensor, Shard

    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if local.shape[0] >= degree:
        return Shard(0)
    return Shard(next((dim for dim, size in enumerate(local.shape) if size % degree == 0), 0))


def tied_across(model: nn.Module, plan: ParallelPlan) -> set[nn.Module]:
    """The blocks that share a parameter with another block or with the rest of the model.

    A tied parameter stays one only where all of its modules are in one group of FSDP: that of the whole
    model has these blocks.
    """
    found = {module for _, module in blocks(model, plan)}

    def owner(parameter: str) -> nn.Module:
        around = (model.get_submodule(name) for name in with_owners(parameter.rpartition(".")[0]))
        return next((module for module in around if module in found), model)

    across: set[nn.Module] = set()
    for group in ties(model):
        owners = {owner(name) for name in group}
        if len(owners) > 1:
            across |= owners
    return across


def _reshard_after_forward(parallelism: ParallelismSection, dims: ParallelDims) -> bool:
    policy = parallelism.fsdp_reshard_after_forward
    # Under a pipeline, "default" keeps parameters gathered: resharding would gather them per microbatch.
    return policy == "always" or (policy == "default" and dims.pp == 1)
