"""Products of the tensors of experts with the rows that are routed to them, and the same on rounded values.

The rows of an expert are neighbours, experts in order: a group of rows for each expert, which may be empty.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor


class GroupedProduct(Protocol):
    """What a module of experts computes each of its products with: its attribute ``product``."""

    def __call__(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``rows @ weights[e].T`` for the rows of each expert ``e``.

        :param rows: (n, inputs), sorted by expert; :param weights: (experts, outputs, inputs)
        :param counts: (experts,), integers: how many rows each has; they sum to n.
        :param bias: (experts, outputs), added to the rows of each.
        :returns: (n, outputs)
        """


class Format(Protocol):
    """How the values of a product are rounded."""

    def along(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """``x`` rounded and scaled back, values that share a scale being neighbours along ``dim``."""

    def of_weights(self, weights: torch.Tensor, dim: int) -> torch.Tensor:
        """The same of weights, whose product sums over ``dim``, -1 or -2.

        :param weights: (..., outputs, inputs)
        """

    def along_groups(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """As :meth:`along` along dim 0, where no scale is shared by two groups.

        :param x: (n, size); :param counts: (groups,), rows of each.
        """


def rounded_product(
    rows: torch.Tensor,
    weights: torch.Tensor,
    counts: torch.Tensor,
    *,
    number_format: Format,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """A :class:`GroupedProduct` of values that are rounded first, forward and backward.

    Values that share a scale are neighbours along the dim that the product sums over. What is float64 is
    multiplied as float32.
    """
    dtype = torch.float32 if rows.dtype == torch.float64 else rows.dtype
    product: Any = _RoundedProduct.apply
    out = product(rows.to(dtype), weights.to(dtype), counts, number_format)
    return with_bias(out.to(rows.dtype), bias, counts)


def with_bias(out: torch.Tensor, bias: torch.Tensor | None, counts: torch.Tensor) -> torch.Tensor:
    """``out`` with the bias of its expert added to each row."""
    if bias is None:
        return out
    return out + bias.to(out.dtype).repeat_interleave(counts, dim=0, output_size=len(out))


def spread(counts: torch.Tensor, total: int, multiple: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Where rows are when each group begins at a multiple; computed without waiting for the device.

    :param counts: (groups,), rows of each; they sum to ``total``.
    :returns: the place of each row, (total,); where each group ends, filled up to the multiple, (groups,)
        int32; and how many places there are at most, a multiple too.
    """
    filled = (counts + multiple - 1) // multiple * multiple
    ends = filled.cumsum(0)
    added = (ends - filled) - (counts.cumsum(0) - counts)
    place = torch.arange(total, device=counts.device) + added.repeat_interleave(counts, output_size=total)
    most = -(-(total + len(counts) * (multiple - 1)) // multiple) * multiple
    return place, ends.to(torch.int32), most


def placed(x: torch.Tensor, place: torch.Tensor, places: int) -> torch.Tensor:
    """The rows of ``x`` at their places, and rows of 0 elsewhere.

    :param x: (n, size); :param place: (n,); :returns: (places, size)
    """
    return x.new_zeros(places, x.shape[1]).index_copy(0, place, x)


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, number_format: Format
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, weights, counts)
        ctx.number_format = number_format
        ends = counts.cumsum(0, dtype=torch.int32)
        x, w = number_format.along(rows, -1), number_format.of_weights(weights, -1)
        return _grouped_mm(x, w.mT, ends)

    @staticmethod
    def backward(
        ctx: Any, *upstream: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        rows, weights, counts = ctx.saved_tensors
        number_format: Format = ctx.number_format
        (given,) = (one.contiguous() for one in upstream)
        ends = counts.cumsum(0, dtype=torch.int32)
        of_rows = of_weights = None
        if ctx.needs_input_grad[0]:
            of_rows = _grouped_mm(number_format.along(given, -1), number_format.of_weights(weights, -2), ends)
        if ctx.needs_input_grad[1]:
            of_weights = _grouped_mm(
                number_format.along_groups(given, counts).T, number_format.along_groups(rows, counts), ends
            )
        return of_rows, of_weights, None, None


def _grouped_mm(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    # Of fake tensors, as in a dry run, torch has it in bfloat16 alone, whatever the device has.
    dtype = torch.bfloat16 if isinstance(left, FakeTensor) else left.dtype
    out: torch.Tensor = F.grouped_mm(left.to(dtype), right.to(dtype), offs=ends)
    return out.to(left.dtype)
