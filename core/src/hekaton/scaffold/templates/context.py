"""The context-parallel strategy: attention over a sequence whose parts lie on different ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed import _functional_collectives as collectives

from hekaton.parallel.context import ContextGroup, contiguous, head_tail

# Renamed in torch 2.13.
_all_gather: Any = (
    getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
)


class Gathering:
    """Every rank gathers all keys and values, and attends with its own queries."""

    passes = ("queries_at", "keys_at")
    """What the inner attention is called with beside q, k, v and documents."""
    traceable = False
    """Whether torch.compile can trace it."""

    def __init__(self, group: ContextGroup) -> None:
        self.group = group
        self.order = head_tail if group.load_balance else contiguous

    def replace(self, inner: nn.Module) -> Callable[..., torch.Tensor]:
        """The forward that takes the place of an inner attention's."""
        attend = inner.forward

        def forward(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: torch.Tensor | None, **others: Any
        ) -> torch.Tensor:
            """:param q: (batch, heads, seq / degree, head_dim); ``documents``: of the whole row."""
            keys, values = self._gathered(k), self._gathered(v)
            keys_at = self.order(keys.shape[2], self.group.degree, device=q.device)
            queries_at = keys_at.chunk(self.group.degree)[self.group.rank]
            out: torch.Tensor = attend(
                q, keys, values, documents, queries_at=queries_at, keys_at=keys_at, **others
            )
            return out

        return forward

    def _gathered(self, part: torch.Tensor) -> torch.Tensor:
        """The parts of all ranks, one after the other along the sequence."""
        by_rank = _all_gather(part.contiguous(), 0, self.group.process_group)
        by_rank = by_rank.wait() if hasattr(by_rank, "wait") else by_rank
        return torch.cat(by_rank.chunk(self.group.degree), dim=2)


def build(section: None, group: ContextGroup) -> Gathering:
    return Gathering(group)
