"""The feed-forward layers of many experts as three tensors, each applied to the tokens routed to it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hekaton.grouped_products import GroupedProduct


class GroupedExperts(nn.Module):
    """``n_experts`` SwiGLU layers: ``w1`` and ``w3`` of (n_experts, hidden_dim, dim), ``w2`` of
    (n_experts, dim, hidden_dim). Under expert parallel a rank has some of them.

    :ivar product: computes the products; a converter may replace it.
    """

    def __init__(self, n_experts: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(n_experts, hidden_dim, dim))
        self.w2 = nn.Parameter(torch.empty(n_experts, dim, hidden_dim))
        self.w3 = nn.Parameter(torch.empty(n_experts, hidden_dim, dim))
        self.product: GroupedProduct = grouped_linear

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Apply each expert to its rows.

        :param rows: (n, dim), the rows of an expert being neighbours, experts in order.
        :param counts: (experts of this rank,), integers: how many rows each has; they sum to n.
        :returns: (n, dim), of these rows in the same order.
        """
        w1, w2, w3 = (local(weight) for weight in (self.w1, self.w2, self.w3))
        hidden = F.silu(self.product(rows, w1, counts)) * self.product(rows, w3, counts)
        return self.product(hidden, w2, counts)


def local(weight: Any) -> torch.Tensor:
    """This rank's part of a parameter."""
    part: torch.Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return part


def share(bias: Any) -> torch.Tensor:
    """This rank's share of a bias that is added to a sum over ranks: where ``n`` of them have it whole, one
    ``n``-th each, so that the sum has it once. The gradient is that of all of them together."""
    if not hasattr(bias, "to_local"):
        whole: torch.Tensor = bias
        return whole
    from torch.distributed.tensor import Partial

    copies = prod(
        size for size, one in zip(bias.device_mesh.shape, bias.placements, strict=True) if one.is_replicate()
    )
    placements = [Partial() if one.is_replicate() else one for one in bias.placements]
    part: torch.Tensor = bias.to_local(grad_placements=placements)
    return part / copies


def grouped_linear(
    rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, *, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``rows @ weights[e].T`` for the rows of each expert ``e``, as one operator where the device has it.

    :param rows: (n, inputs), sorted by expert; :param weights: (experts, outputs, inputs)
    :param counts: (experts,), rows of each; they sum to n.
    :param bias: (experts, outputs), added to the rows of each.
    :returns: (n, outputs)
    """
    if has_grouped_mm(rows, weights):
        ends = counts.cumsum(0, dtype=torch.int32)
        out: torch.Tensor = F.grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
        if bias is None:
            return out
        return out + bias.repeat_interleave(counts, dim=0, output_size=len(rows))
    rows_of = sizes(counts, len(rows))
    # One token has few experts, and a product of no rows takes its time too.
    used = [number for number, size in enumerate(rows_of) if size] or [0]
    parts = rows.split([rows_of[number] for number in used])
    # The gradient of one expert at a time would be as large as that of all.
    each: Any = weights.unbind() if torch.is_grad_enabled() else weights
    if bias is None:
        return torch.cat([part @ each[number].T for number, part in zip(used, parts, strict=True)])
    biases: Any = bias.unbind() if torch.is_grad_enabled() else bias
    return torch.cat(
        [torch.addmm(biases[number], part, each[number].T) for number, part in zip(used, parts, strict=True)]
    )


def has_grouped_mm(rows: torch.Tensor, weights: torch.Tensor) -> bool:
    """Whether ``torch.nn.functional.grouped_mm`` takes these and is fast: bfloat16 in rows of a multiple of
    16 bytes. In float32, which it has on a CPU alone, its backward takes eight times as long as a loop."""
    aligned = all(size * rows.element_size() % 16 == 0 for size in weights.shape[1:])
    return rows.dtype == weights.dtype == torch.bfloat16 and aligned


def sizes(counts: torch.Tensor, total: int) -> list[int]:
    """Counts as Python integers, for which the host waits; fake tensors have no values, and count as even.

    :param total: their sum.
    """
    if is_fake(counts):
        even, more = divmod(total, len(counts))
        return [even + (place < more) for place in range(len(counts))]
    listed: list[int] = counts.tolist()
    return listed


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape and no values, as in a dry run."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def count_of_each(numbers: torch.Tensor, upto: int) -> torch.Tensor:
    """How often each of the numbers below ``upto`` occurs, as (upto,) int64; on every device deterministic,
    and of a known shape on fake tensors too.

    :param numbers: integers, in ascending order.
    """
    ends = torch.searchsorted(numbers, torch.arange(upto, device=numbers.device), right=True)
    return ends.diff(prepend=ends.new_zeros(1))
