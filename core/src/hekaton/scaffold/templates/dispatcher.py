"""The dispatcher: brings tokens to experts on other ranks, and the results back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import _functional_collectives as collectives

from hekaton.errors import ConfigError
from hekaton.parallel.experts import ExpertGroup

Experts = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Rows sorted by expert, and how many each has -> what the experts make of them."""
# Renamed in torch 2.13.
_all_gather: Any = (
    getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
)
_reduce_scatter: Any = (
    getattr(collectives, "reduce_scatter_single_autograd", None) or collectives.reduce_scatter_tensor_autograd
)
_all_gather_numbers: Any = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor


class GatheringDispatcher:
    """Every rank gathers all tokens, applies its own experts, and the results are summed. Ranks must have
    equally many tokens."""

    def __init__(self, group: ExpertGroup) -> None:
        if group.etp.size() > 1:
            raise ConfigError("this dispatcher does not cut experts: leave their tensor parallel degree at 1")
        self.ep = group.ep

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

        :param x: (tokens, dim); ``chosen``: (tokens, top_k) of all ``n_experts``; ``weights``: likewise.
        :param experts: applies this rank's experts to rows that are sorted by expert.
        :param weights_on_input: scale what goes into an expert, instead of what comes out.
        :returns: (tokens, dim)
        """
        tokens, numbers, scales = (self._gathered(part) for part in (x, chosen, weights))
        here = n_experts // self.ep.size()
        local = numbers - self.ep.rank() * here
        token, place = ((local >= 0) & (local < here)).nonzero(as_tuple=True)
        order = local[token, place].argsort(stable=True)
        token, place = token[order], place[order]
        counts = torch.bincount(local[token, place], minlength=here)
        scale = scales[token, place, None]
        rows = (tokens[token] * scale).type_as(x) if weights_on_input else tokens[token]
        results = experts(rows, counts)
        results = results if weights_on_input else results * scale
        summed = torch.zeros_like(tokens).index_add(0, token, results.type_as(x))
        return _wait(_reduce_scatter(summed, "sum", 0, self.ep))

    def _gathered(self, part: torch.Tensor) -> torch.Tensor:
        gather = _all_gather if part.is_floating_point() else _all_gather_numbers
        return _wait(gather(part.contiguous(), 0, self.ep))


def _wait(x: Any) -> torch.Tensor:
    waited: torch.Tensor = x.wait() if hasattr(x, "wait") else x
    return waited


def build(section: None, group: ExpertGroup) -> GatheringDispatcher:
    return GatheringDispatcher(group)
