"""Products in NVFP4 (NVIDIA, 2025, "Pretraining Large Language Models with NVFP4"): values in E2M1, 16 of
which share a scale in E4M3, and a scale of the whole in float32.

Of weights 16 x 16 share a scale, so that forward and backward compute with the same values. Gradients are
rounded stochastically. What the gradient of a weight is computed from is rotated first, 16 tokens at a time,
which spreads values that are far larger than their neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

MULTIPLE = 128
"""torchao's kernels take outputs, inputs and tokens in multiples of it."""
BLOCK = 16
LARGEST, LARGEST_SCALE, SMALLEST_SCALE = 6.0, 448.0, 2.0**-6
SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
"""Of the rotation: drawn once, the same for all layers, ranks and runs."""
SEED = 0x5EED


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As :func:`emulated_product`, by torchao's kernels, which compute in bfloat16.

    Noise of the stochastic rounding is drawn from the device's default generator, which checkpoints keep.
    """
    from torchao.prototype.moe_training.nvfp4_training.nvfp4_linear import nvfp4_linear

    seed = torch.full((1,), SEED, dtype=torch.int64, device=x.device)
    rows = _rows(x).to(torch.bfloat16)
    out = nvfp4_linear(rows, weight.to(torch.bfloat16), sign_vector=SIGNS, sr_seed=seed)
    return _as_before(out, x)


def emulated_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` of values that are rounded to NVFP4, as are those of its backward.

    :param x: (..., inputs); :param weight: (outputs, inputs)
    :returns: (..., outputs), in the precision of ``x``; what is float64 is multiplied as float32.
    """
    dtype = torch.float32 if x.dtype == torch.float64 else x.dtype
    multiply: Any = _Rounded.apply
    return _as_before(multiply(_rows(x).to(dtype), weight.to(dtype)), x)


@torch.compiler.allow_in_graph
class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rounded(rows), rounded(weight, tall=BLOCK))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        rows, weight = ctx.saved_tensors
        (given,) = upstream
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            values, scale = rounded(weight, tall=BLOCK)
            of_rows = _multiply(rounded(given, stochastic=True), (values.T, scale))
        if ctx.needs_input_grad[1]:
            of_weight = _multiply(rounded(rotated(given), stochastic=True), rounded(rotated(rows)))
            of_weight = of_weight.to(weight.dtype)
        return of_rows, of_weight


def rounded(x: torch.Tensor, *, tall: int = 1, stochastic: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in E2M1 times the scales of their blocks, and the scale of the whole; their product is ``x``,
    rounded.

    :param x: (rows, n), a multiple of 16; :param tall: how many rows a block has.
    :returns: (rows, n) in the precision of ``x``, where they are exact; and a scalar in float32.
    """
    largest = x.abs().max().float()
    whole = torch.where(largest > 0, LARGEST * LARGEST_SCALE / largest, 1.0)
    whole = whole.clamp(max=torch.finfo(torch.float32).max)
    blocks = x.float().unflatten(-1, (-1, BLOCK)).unflatten(0, (-1, tall))
    scale = blocks.abs().amax((1, 3), keepdim=True) / LARGEST * whole
    scale = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn).float()
    values = to_e2m1(blocks * (1 / (scale * (1 / whole))), stochastic=stochastic) * scale
    return values.flatten(0, 1).flatten(1).to(x.dtype), 1 / whole


def to_e2m1(x: torch.Tensor, *, stochastic: bool) -> torch.Tensor:
    """Each value to one of 0, 0.5, 1, 1.5, 2, 3, 4 and 6: the nearest, ties to even, or one of the two around
    it by chance, so that the mean is ``x``; beyond 6, that."""
    size = x.abs().clamp(max=LARGEST)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    steps = size / step
    steps = (steps + torch.rand_like(steps)).floor() if stochastic else steps.round()
    return (steps * step).copysign(x)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """The transpose of ``x``, each 16 columns of which are multiplied by an orthogonal matrix.

    :param x: (rows, n), a multiple of 16 rows; :returns: (n, rows) in float32.
    """
    hadamard = torch.ones(1, 1, device=x.device)
    for _ in range(4):  # Sylvester's construction
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    signs = torch.tensor(SIGNS, dtype=torch.float32, device=x.device)
    return (x.T.float().unflatten(-1, (-1, BLOCK)) @ (signs[:, None] * hadamard / 4)).flatten(1)


def _multiply(
    left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """``left @ right.T``, whose values are exact in the precision that they are given in."""
    (a, of_a), (b, of_b) = left, right
    return ((a @ b.T).float() * (of_a * of_b)).to(a.dtype)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of ``x``, filled up with rows of 0 to whole blocks."""
    rows = x.flatten(0, -2)
    return F.pad(rows, (0, 0, 0, -len(rows) % MULTIPLE))


def _as_before(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return out[: x.shape[:-1].numel()].unflatten(0, x.shape[:-1]).to(x.dtype)
