"""A linear layer with a low-rank adapter beside its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement

A, B = "lora_a", "lora_b"


class Adapted:
    """What :func:`adapt` adds to a linear layer, of whatever class that is.

    :ivar lora_a: (rank, in_features)
    :ivar lora_b: (out_features, rank)
    :ivar lora_scale: alpha / rank
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (..., in_features); :returns: (..., out_features)"""
        given: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return given + self.lora_scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def apply_style(self, style: ParallelStyle, mesh: DeviceMesh) -> None:
        """Cut the layer as its style says, and the adapter along: B by its rows where those of the weight are
        cut, A by its columns where those are."""
        assert isinstance(self, nn.Linear)
        added = {name: self._parameters.pop(name) for name in (A, B)}
        parallelize_module(self, mesh, style)
        for name, parameter in added.items():
            assert parameter is not None
            if isinstance(self.weight, DTensor) and not isinstance(parameter, DTensor):
                placements = [_beside(place, name) for place in self.weight.placements]
                distributed = distribute_tensor(parameter, mesh, placements, src_data_rank=None)
                parameter = nn.Parameter(distributed, requires_grad=parameter.requires_grad)
            self.register_parameter(name, parameter)


def _beside(place: Placement, name: str) -> Placement:
    """Where A or B lies whose layer's weight lies at ``place``."""
    dim = {A: 1, B: 0}[name]
    return place if isinstance(place, Shard) and place.dim == dim else Replicate()


def adapt(layer: nn.Linear, *, rank: int, scale: float) -> None:
    """Give a layer an adapter, in place; its weight keeps its name."""
    made: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    layer.__class__ = _adapted_class(type(layer))  # type: ignore[arg-type] # a class has a hash
    layer.register_parameter(A, nn.Parameter(torch.empty(rank, layer.in_features, **made)))
    layer.register_parameter(B, nn.Parameter(torch.empty(layer.out_features, rank, **made)))
    layer.lora_scale = scale  # type: ignore[assignment]


@cache
def _adapted_class(layer: type[nn.Linear]) -> type[nn.Linear]:
    return type(f"Lora{layer.__name__}", (Adapted, layer), {"__module__": __name__})


@dataclass(frozen=True)
class AddedProduct:
    """The weight of a layer without adapter that computes what one with it does: ``W + alpha / rank * B A``,
    summed in float32 at least."""

    rank: int
    alpha: float

    def __call__(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """:param parts: weight, A and B."""
        wide = torch.promote_types(parts[0].dtype, torch.float32)
        weight, a, b = (part.to(wide) for part in parts)
        return weight + self.alpha / self.rank * (b @ a)


@dataclass(frozen=True)
class KaimingUniform:
    """Uniform within ``sqrt(6 / ((1 + slope**2) * columns))`` (He et al., 2015); with the slope ``sqrt(5)``
    of ``torch.nn.Linear`` and of the reference implementation of LoRA, ``1 / sqrt(columns)``."""

    slope: float = math.sqrt(5)

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        bound = math.sqrt(6 / ((1 + self.slope**2) * tensor.shape[-1]))
        tensor.uniform_(-bound, bound, generator=generator)
