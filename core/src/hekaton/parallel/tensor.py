"""Tensor and sequence parallel: the styles that a plan names, looked up and applied."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from hekaton.errors import ConfigError
from hekaton.parallel.plan import module_names
from hekaton.parallel.ties import tie, ties
from hekaton.patterns import resolve

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel import ParallelStyle

    from hekaton.parallel.plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class TensorContext:
    """The switches that change what a style means.

    :param sequence_parallel: between the cut layers each rank holds its part of the sequence.
    :param loss_parallel: the logits stay cut by the vocabulary, and the loss is computed on them.
    """

    sequence_parallel: bool
    loss_parallel: bool


StyleMaker = Callable[[TensorContext], "ParallelStyle"]


def tensor_entries(
    model: nn.Module, plan: ParallelPlan, overrides: Mapping[str, str], *, what: str
) -> dict[str, str]:
    """Module name -> style: the plan's entries, and over them the user's.

    :param model: the whole model.
    :param overrides: pattern -> style, from ``[parallelism.plan]``.
    :raises ConfigError: when the model has no tensor entries, or an entry of the user's matches nothing.
    """
    names = module_names(model)
    entries = resolve(plan.tensor, names, what=f"plan of {what}, tensor")
    if not entries:
        raise ConfigError(f"model '{what}' has no tensor-parallel plan: tensor_parallel_degree must be 1")
    return entries | resolve(overrides, names, what="[parallelism.plan]")


def cut_sizes(model: nn.Module, styles: Mapping[str, StyleMaker], context: TensorContext) -> dict[str, int]:
    """Module name -> the size by which its weight is cut, for styles of torch's own kind.

    Those cut a dim into as many parts as there are ranks, and compute with parts of one size only: what is
    cut must be divisible. A style of another kind answers for itself.

    :param model: the whole model.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    sizes = {}
    for name, module in model.named_modules():
        if name in styles and isinstance(module, nn.Linear | nn.Embedding):
            style = styles[name](context)
            if isinstance(style, ColwiseParallel | RowwiseParallel):
                outputs, inputs = (0, 1) if isinstance(module, nn.Linear) else (1, 0)
                sizes[name] = module.weight.shape[outputs if isinstance(style, ColwiseParallel) else inputs]
    return sizes


def apply_tensor_parallel(
    model: nn.Module, styles: Mapping[str, StyleMaker], mesh: DeviceMesh, context: TensorContext
) -> None:
    """Apply each module's style; tied parameters stay tied.

    A module with parameters that styles do not know, as a converter adds them, has a method
    ``apply_style(style, mesh)`` that is called instead, and applies the style to what it knows.

    :param styles: module name -> what makes its style; modules that this stage lacks are left out.
    :param mesh: the ``tp`` axis.
    :raises ConfigError: for a tied parameter that its modules' styles place in different ways.
    """
    from torch.distributed.tensor.parallel import parallelize_module

    tied = ties(model)
    modules = {name: module for name, module in model.named_modules() if name in styles}
    for name, module in modules.items():
        style = styles[name](context)
        if hasattr(module, "apply_style"):
            module.apply_style(style, mesh)
        else:
            parallelize_module(module, mesh, style)
    tie(model, tied)  # each style distributes its own module's parameters


def enable_async_tensor_parallel(mesh: DeviceMesh) -> None:
    """Let inductor split products of matrices into pieces that overlap with their collectives.

    :param mesh: the ``tp`` axis, on CUDA.
    """
    import torch._inductor.config
    from torch.distributed import _symmetric_memory

    torch._inductor.config._micro_pipeline_tp = True
    with warnings.catch_warnings():
        # torch 2.13 calls this needless, yet its inductor still skips groups that were not named here.
        warnings.simplefilter("ignore", FutureWarning)
        _symmetric_memory.enable_symm_mem_for_group(mesh.get_group().group_name)
