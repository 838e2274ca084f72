"""The styles of tensor and sequence parallel: what each does to a module's parameters and activations.

Between the modules that a plan names, activations are plain tensors: each rank's part of the sequence under
sequence parallel, the whole sequence otherwise. Inside a norm's consumers they are replicated DTensors, so
that one all-gather in forward, and one reduce-scatter in backward, serves all the projections that read it
(Korthikanti et al., 2022, "Reducing Activation Recomputation in Large Transformer Models").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.distributed.tensor.placement_types import Placement

from hekaton.parallel.tensor import TensorContext


def _between_modules(context: TensorContext) -> Placement:
    return Shard(1) if context.sequence_parallel else Replicate()


def colwise(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its outputs; its input is whole, its output stays cut."""
    return ColwiseParallel()


def rowwise(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its inputs; the partial outputs are summed, whole or in parts."""
    return RowwiseParallel(output_layouts=_between_modules(context))


def whole_colwise(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its outputs, which all ranks gather, for models in which every rank has whole
    sequences and heads between modules."""
    return ColwiseParallel(output_layouts=Replicate())


def whole_rowwise(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its inputs, of which each rank takes its part of a whole input; the partial
    outputs are summed, and all ranks have them whole."""
    return RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())


def summed_rowwise(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``rowwise``, after a ``colwise``, in models in which every rank has whole sequences."""
    return RowwiseParallel(output_layouts=Replicate())


def vocab_embedding(section: Any, context: TensorContext) -> ParallelStyle:
    """An embedding sharded by its rows: each rank looks up what it has, and the results are summed."""
    return _Embedding(_between_modules(context))


def vocab_output(section: Any, context: TensorContext) -> ParallelStyle:
    """The output projection sharded by the vocabulary; under loss parallel the logits are never gathered."""
    if context.loss_parallel:
        return ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    return ColwiseParallel(output_layouts=Replicate())


def gathering_vocab_output(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``vocab_output``, of an input that is gathered first."""
    style: Any = vocab_output(section, context)
    style.input_layouts = (_between_modules(context),)
    return style


def sequence_norm(section: Any, context: TensorContext) -> ParallelStyle:
    """A norm whose weight every rank has: each norms its part of the sequence, then all gather."""
    return _Norm(_between_modules(context))


def part_norm(section: Any, context: TensorContext) -> ParallelStyle:
    """A norm whose weight every rank has, of this rank's part of the sequence, before a ``part_layer``."""
    return _PartNorm(_between_modules(context))


def part_layer(section: Any, context: TensorContext) -> ParallelStyle:
    """A layer that each rank computes on its part of the sequence, with plain tensors inside: experts."""
    return _PartLayer(_between_modules(context))


def part_linear(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer inside a ``part_layer``, whose weight every rank has whole."""
    return _OnRows(Shard(0))


def local_norm(section: Any, context: TensorContext) -> ParallelStyle:
    """A norm whose weight every rank has, of this rank's part of the sequence, which is not gathered."""
    return _OnPart(_between_modules(context))


def local_linear(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer that every rank has whole, of this rank's part of the sequence.

    For projections that are small beside their input, such as the low-rank ones of multi-head latent
    attention: what they give is gathered instead of what they are given.
    """
    return _OnRows(Shard(0) if context.sequence_parallel else Replicate())


def gathering_colwise(section: Any, context: TensorContext) -> ParallelStyle:
    """A linear layer sharded by its outputs, which gathers its input; its output stays cut."""
    return ColwiseParallel(input_layouts=_between_modules(context))


def gather_for_heads(section: Any, context: TensorContext) -> ParallelStyle:
    """A module without parameters, whose input is gathered for the heads that each rank has."""
    return _GatherForHeads(_between_modules(context))


def head_norm(section: Any, context: TensorContext) -> ParallelStyle:
    """A norm of each head's channels, whose weight every rank has: each norms the heads that it has."""
    return _OnPart(Shard(2))


def grouped_experts(section: Any, context: TensorContext) -> ParallelStyle:
    """The tensors of a layer's experts on the mesh (``ep``, ``etp``): the experts distributed, and in each
    ``w1`` and ``w3`` cut by their outputs and ``w2`` by its inputs, so that results are partial sums."""
    return Experts({"w1": (Shard(0), Shard(1)), "w2": (Shard(0), Shard(2)), "w3": (Shard(0), Shard(1))})


def biased_experts(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``grouped_experts``, of ``mlp1`` with gates and what they gate in turns, ``mlp2``, and biases. That
    of ``mlp2`` is added to a sum over ranks: every one of them has it whole, and adds its share."""
    return Experts(
        {
            "mlp1_weight": (Shard(0), Shard(1)),
            "mlp1_bias": (Shard(0), Shard(1)),
            "mlp2_weight": (Shard(0), Shard(2)),
            "mlp2_bias": (Shard(0), Replicate()),
        }
    )


def head_parameters(section: Any, context: TensorContext) -> ParallelStyle:
    """A module's own parameters, which have a value for each head: those of the heads that this rank has."""
    return _OfHeads()


def replicate(section: Any, context: TensorContext) -> ParallelStyle:
    """A module that every rank has whole, on the same input, giving the same output."""
    return _Whole()


class _Embedding(RowwiseParallel):
    def __init__(self, layout: Placement) -> None:
        super().__init__(input_layouts=Replicate(), output_layouts=layout)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def leave(_: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return _Wait.apply(output) if isinstance(output, AsyncCollectiveTensor) else output

        super()._apply(module, device_mesh)
        module.register_forward_hook(leave)
        return module


class _Wait(torch.autograd.Function):
    """Wait for a collective. A compiled block that is given one not waited for returns no gradient to it
    (torch 2.13), and the embedding would not learn."""

    @staticmethod
    def forward(ctx: Any, x: AsyncCollectiveTensor) -> torch.Tensor:
        return x.wait()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class _Norm(ParallelStyle):
    def __init__(self, layout: Placement) -> None:
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(
            _: nn.Module, inputs: tuple[torch.Tensor, ...], mesh: DeviceMesh
        ) -> tuple[torch.Tensor, ...]:
            return (DTensor.from_local(inputs[0], mesh, [self._layout], run_check=False), *inputs[1:])

        def leave(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> DTensor:
            return output.redistribute(placements=[Replicate()])

        return distribute_module(module, device_mesh, None, enter, leave)


class _OnRows(ParallelStyle):
    """As :class:`_OnPart`, for a linear layer. What it multiplies are rows of tokens, in whatever order: a
    tensor that is cut along its second dim would be gathered to become a matrix."""

    def __init__(self, rows: Placement) -> None:
        self._rows = rows

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward = module.forward

        def of_rows(x: torch.Tensor) -> torch.Tensor:
            rows = DTensor.from_local(x.flatten(0, -2), device_mesh, [self._rows], run_check=False)
            output: DTensor = forward(rows)
            return output.to_local().unflatten(0, x.shape[:-1])

        distribute_module(module, device_mesh)
        module.forward = of_rows
        return module


class _GatherForHeads(ParallelStyle):
    def __init__(self, layout: Placement) -> None:
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = DTensor.from_local(inputs[0], device_mesh, [self._layout], run_check=False)
            # Each rank's heads give a part of the gradient.
            whole = x.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
            return (whole, *inputs[1:])

        module.register_forward_pre_hook(enter)
        return module


class _OnPart(ParallelStyle):
    """Each rank's part of the input in and of the output out, plain tensors, with a weight that every rank
    has: as a DTensor in between, so that the weight's gradient is summed."""

    def __init__(self, layout: Placement) -> None:
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(
            _: nn.Module, inputs: tuple[torch.Tensor, ...], mesh: DeviceMesh
        ) -> tuple[torch.Tensor, ...]:
            return (DTensor.from_local(inputs[0], mesh, [self._layout], run_check=False),)

        def leave(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> torch.Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, None, enter, leave)


class _PartNorm(ParallelStyle):
    def __init__(self, layout: Placement) -> None:
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(
            _: nn.Module, inputs: tuple[torch.Tensor, ...], mesh: DeviceMesh
        ) -> tuple[torch.Tensor, ...]:
            whole = DTensor.from_local(inputs[0], mesh, [self._layout], run_check=False)
            return (whole.redistribute(placements=[Shard(1)]), *inputs[1:])

        return distribute_module(module, device_mesh, None, enter)


class _PartLayer(ParallelStyle):
    def __init__(self, layout: Placement) -> None:
        self._layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layout = self._layout

        def enter(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = inputs[0]
            if not isinstance(x, DTensor):
                x = DTensor.from_local(x, device_mesh, [layout], run_check=False)
            return (x.redistribute(placements=[Shard(1)]).to_local(), *inputs[1:])

        def leave(_: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            part = DTensor.from_local(output, device_mesh, [Shard(1)], run_check=False)
            return part.redistribute(placements=[layout]).to_local()

        # Not distribute_module: it would make DTensors of the experts, which have a mesh of their own.
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
        return module


class Experts(ParallelStyle):
    """Tensors of experts cut on the mesh (``ep``, ``etp``), those of other names left whole.

    :param placements: name of a tensor -> its placements on the two axes.
    """

    def __init__(self, placements: Mapping[str, tuple[Placement, Placement]]) -> None:
        self.placements = placements

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            placements = self.placements.get(name, (Replicate(), Replicate()))
            cut = distribute_tensor(parameter, device_mesh, placements, src_data_rank=None)
            setattr(module, name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
        return module


class _OfHeads(ParallelStyle):
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter, device_mesh, [Shard(0)], src_data_rank=None)
            setattr(module, name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
        return module


class _Whole(ParallelStyle):
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return tuple(
                DTensor.from_local(value, mesh, [Replicate()], run_check=False)
                if isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
                else value
                for value in inputs
            )

        def leave(_: nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.to_local() if isinstance(output, DTensor) else output

        return distribute_module(module, device_mesh, None, enter, leave)
