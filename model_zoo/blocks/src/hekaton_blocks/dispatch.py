"""Bringing tokens to their experts and results back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hekaton_blocks.experts import count_of_each

Experts = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``experts(rows, counts)``: see :meth:`hekaton_blocks.experts.GroupedExperts.forward`."""


class Dispatcher(Protocol):
    """What a layer of experts calls to have its tokens pass through them."""

    def __call__(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        experts: Experts,
        *,
        n_experts: int,
        weights_on_input: bool,
    ) -> torch.Tensor:
        """The weighted sum of what its experts make of each token.

        :param x: (tokens, dim), this rank's tokens.
        :param chosen: (tokens, top_k), the numbers of their experts, of all ``n_experts``.
        :param weights: (tokens, top_k), in float32 or better.
        :param experts: applies the experts that this rank has to rows that are sorted by expert.
        :param weights_on_input: scale what goes into an expert, instead of what comes out.
        :returns: (tokens, dim)
        """


class LocalDispatcher:
    """All experts are on this rank: sort by expert, apply, put back in order."""

    def __call__(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        experts: Experts,
        *,
        n_experts: int,
        weights_on_input: bool,
    ) -> torch.Tensor:
        """See :class:`Dispatcher`."""
        rows, counts, inverse = sort_by_expert(x, chosen, weights, n_experts, weighted=weights_on_input)
        return combine(experts(rows, counts), inverse, None if weights_on_input else weights, chosen)


def sort_by_expert(
    x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, n_experts: int, *, weighted: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token once for each of its experts, those of an expert being neighbours.

    :param x: (tokens, dim); ``chosen`` and ``weights``: (tokens, top_k)
    :param weighted: scale each row by its weight.
    :returns: the rows, (tokens * top_k, dim); how many each expert has, (n_experts,); and where the row of
        each choice is, (tokens * top_k,).
    """
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = count_of_each(flat[order], n_experts)
    rows = _Spread.apply(x, order, inverse, chosen.shape[1])
    if weighted:
        rows = (rows * weights.flatten()[order].unsqueeze(-1)).type_as(x)
    return rows, counts, inverse


def combine(
    rows: torch.Tensor, inverse: torch.Tensor, weights: torch.Tensor | None, chosen: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of each token's rows.

    :param rows: (tokens * top_k, dim), as :func:`sort_by_expert` sorted them; ``inverse`` is its third.
    :param weights: (tokens, top_k); ``None`` for a plain sum.
    :returns: (tokens, dim)
    """
    results = reorder(rows, inverse).unflatten(0, chosen.shape)
    if weights is not None:
        results = results * weights.unsqueeze(-1)
    out: torch.Tensor = results.sum(1).type_as(rows)
    return out


def reorder(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``rows[places]``, ``places`` being a permutation."""
    apply: Any = _Reorder.apply
    out: torch.Tensor = apply(rows, places)
    return out


class _Spread(torch.autograd.Function):
    """``x`` with each row ``k`` times, in some order. The backward gathers and sums instead of adding up at
    random places, so that results do not depend on the order of threads."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, k: int
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse).unflatten(0, (-1, ctx.k)).sum(1), None, None, None


class _Reorder(torch.autograd.Function):
    """Rows in another order: ``rows[places]``, ``places`` being a permutation."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        back = torch.empty_like(grads[0])
        back[places] = grads[0]
        return back, None
