"""Dispatchers: bringing tokens to experts on other ranks, and the results back."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import _functional_collectives as collectives

from hekaton.parallel.experts import ExpertGroup
from hekaton_blocks.dispatch import Experts, combine, reorder, sort_by_expert
from hekaton_blocks.experts import sizes

# Renamed in torch 2.13.
_all_gather: Any = (
    getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
)
_all_gather_numbers: Any = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter: Any = (
    getattr(collectives, "reduce_scatter_single_autograd", None) or collectives.reduce_scatter_tensor_autograd
)


class AllToAll:
    """Each rank sends every token straight to the ranks of its experts, as many to each as the router says.

    Ranks that have parts of the same experts first gather their tokens, and afterwards each gets the sums of
    the partial results of its own.
    """

    def __init__(self, group: ExpertGroup) -> None:
        self._ep, self._etp = group.ep, group.etp

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
        """See :class:`hekaton_blocks.Dispatcher`."""
        shared = self._etp.size() > 1
        if shared:
            x, weights = (_wait(_all_gather(part, 0, self._etp)) for part in (x, weights))
            chosen = _wait(_all_gather_numbers(chosen, 0, self._etp))
        out = self._send(x, chosen, weights, experts, n_experts, weights_on_input)
        return _wait(_reduce_scatter(out, "sum", 0, self._etp)) if shared else out

    def _send(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        experts: Experts,
        n_experts: int,
        weights_on_input: bool,
    ) -> torch.Tensor:
        """As :class:`hekaton_blocks.Dispatcher`, by whole experts."""
        rows, counts, inverse = sort_by_expert(x, chosen, weights, n_experts, weighted=weights_on_input)
        rows = self._through(rows, counts, experts)
        return combine(rows, inverse, None if weights_on_input else weights, chosen)

    def _through(self, rows: torch.Tensor, counts: torch.Tensor, experts: Experts) -> torch.Tensor:
        """What the experts make of rows that are sorted by expert, in the same order.

        :param counts: (n_experts,), how many rows each expert has.
        """
        ranks = self._ep.size()
        if ranks == 1:
            return experts(rows, counts)
        to_send = counts.unflatten(0, (ranks, -1))
        received = _wait(collectives.all_to_all_single(counts, None, None, self._ep)).view_as(to_send)
        both = torch.stack((to_send.sum(1), received.sum(1)))  # together, for the host waits for them
        sent_sizes, received_sizes = _two_sizes(both, len(rows))
        rows = _wait(collectives.all_to_all_single_autograd(rows, received_sizes, sent_sizes, self._ep))
        # By rank and then by expert as they came; experts take them by expert.
        local = to_send.shape[1]
        numbers = torch.arange(local, device=rows.device).repeat(ranks)
        order = numbers.repeat_interleave(received.flatten(), output_size=len(rows)).argsort(stable=True)
        results = experts(reorder(rows, order), received.sum(0))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return _wait(
            collectives.all_to_all_single_autograd(
                reorder(results, back), sent_sizes, received_sizes, self._ep
            )
        )


def _two_sizes(counts: torch.Tensor, total: int) -> tuple[list[int], list[int]]:
    """Rows to each rank, and from each, as Python integers.

    :param counts: (2, ranks); :param total: the rows to all.
    """
    flat = sizes(counts.flatten(), 2 * total)
    return flat[: counts.shape[1]], flat[counts.shape[1] :]


def _wait(x: torch.Tensor) -> torch.Tensor:
    wait = getattr(x, "wait", None)  # an AsyncCollectiveTensor in eager mode, a plain tensor when traced
    return x if wait is None else wait()


def alltoall(section: Any, group: ExpertGroup) -> AllToAll:
    return AllToAll(group)
