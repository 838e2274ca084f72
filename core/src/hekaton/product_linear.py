"""A linear layer that multiplies in a way of its own, whole or in the parts that ranks have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``product(x, weight)`` is ``x @ weight.T``; ``x``: (..., inputs), ``weight``: (outputs, inputs)."""


class ProductLinear(nn.Linear):
    """A linear layer that computes with ``product``, with the parameters of the one that it replaces.

    Of a weight that is cut each rank multiplies its part: where sizes of parts are multiples of what shares a
    scale, the scales are those of the whole.
    """

    def __init__(self, layer: nn.Linear, product: Product) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.product = product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (..., inputs); :returns: (..., outputs)"""
        out = self._on_parts(x) if isinstance(self.weight, DTensor) else self.product(x, self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _on_parts(self, x: Any) -> torch.Tensor:
        weight: Any = self.weight
        mesh, (cut,) = weight.device_mesh, weight.placements
        last = Shard(x.dim() - 1)
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        if cut.is_replicate():
            (given,) = x.placements
            summed, result = (Partial() if given.is_shard() else given), given
            part = x.to_local()
        elif cut.is_shard(0):
            part, summed, result = x.to_local(grad_placements=[Partial()]), cut, last
        else:
            part, summed, result = x.redistribute(placements=[last]).to_local(), cut, Partial()
        out = self.product(part, weight.to_local(grad_placements=[summed]))
        return DTensor.from_local(out, mesh, [result], run_check=False)
