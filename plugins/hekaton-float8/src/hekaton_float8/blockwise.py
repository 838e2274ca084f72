"""Products in float8 by blocks (DeepSeek V3, section 3.3.2): E4M3, a scale for each 128 neighbours of inputs
and gradients, and for each 128 x 128 of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torchao.float8.float8_utils import amax_to_scale, to_fp8_saturated

from hekaton.grouped_products import placed, spread

BLOCK = 128


def emulated_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` of values that are rounded to float8, as are those of its backward.

    :param x: (..., inputs); :param weight: (outputs, inputs)
    :returns: (..., outputs), in the precision of ``x``; what is float64 is multiplied as float32.
    """
    dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    product: Any = _Rounded.apply
    out: torch.Tensor = product(_rows(x).to(dtype), weight.to(dtype))
    return _as_before(out, x)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As :func:`emulated_product`, by torchao's kernels."""
    from torchao.prototype.blockwise_fp8_training.linear import fp8_blockwise_mm

    # torch's product by blocks is for capability 9.0 alone.
    triton = torch.cuda.get_device_capability(x.device) != (9, 0)
    multiply: Any = fp8_blockwise_mm.apply
    return _as_before(multiply(_rows(x), weight, BLOCK, torch.bfloat16, triton), x)


@dataclass(frozen=True)
class Blockwise:
    """E4M3 by blocks; see :class:`hekaton.grouped_products.Format`."""

    def along(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        blocks = x.unflatten(dim, (-1, BLOCK))
        within = dim if dim < 0 else dim + 1
        return rounded(blocks, blocks.abs().amax(within, keepdim=True)).flatten(*sorted((within - 1, within)))

    def of_weights(self, weights: torch.Tensor, dim: int) -> torch.Tensor:
        blocks = weights.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
        return rounded(blocks, blocks.abs().amax((-3, -1), keepdim=True)).flatten(-4, -3).flatten(-2)

    def along_groups(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        place, _, places = spread(counts, len(x), BLOCK)
        return self.along(placed(x, place, places), 0).index_select(0, place)


def rounded(x: torch.Tensor, amax: torch.Tensor, *, power_of_2: bool = False) -> torch.Tensor:
    """``x`` scaled to the whole range of E4M3, rounded, and scaled back."""
    scale = amax_to_scale(amax, torch.float8_e4m3fn, round_scales_to_power_of_2=power_of_2)
    values: torch.Tensor = to_fp8_saturated(x.float() * scale, torch.float8_e4m3fn).float() / scale
    return values.to(x.dtype)


@torch.compiler.allow_in_graph
class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return Blockwise().along(rows, -1) @ Blockwise().of_weights(weight, -1).T

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows, weight = ctx.saved_tensors
        (given,) = upstream
        blocks = Blockwise()
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = blocks.along(given, -1) @ blocks.of_weights(weight, -2)
        if ctx.needs_input_grad[1]:
            of_weight = blocks.along(given, 0).T @ blocks.along(rows, 0)
        return of_rows, of_weight


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of ``x``, filled up with rows of 0 to the whole blocks that backward sums over."""
    rows = x.flatten(0, -2)
    return F.pad(rows, (0, 0, 0, -len(rows) % BLOCK))


def _as_before(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return out[: x.shape[:-1].numel()].unflatten(0, x.shape[:-1]).to(x.dtype)
