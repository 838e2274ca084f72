"""Context parallel: attention over a sequence whose parts lie on different ranks.

A strategy takes the place of an inner attention's forward, ``(q, k, v, documents)``, where ``q``, ``k`` and
``v`` are this rank's part of the sequence, (batch, heads, seq / cp, head_dim), and ``documents`` that of the
whole row, (batch, seq), as the model prepared it for attention. ``v`` may have a head_dim of its own. Where
its pattern has sinks, they are given by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed import _functional_collectives as collectives

from hekaton.errors import ConfigError
from hekaton.parallel.context import ContextGroup, contiguous, head_tail
from hekaton_blocks import AttentionPattern
from hekaton_parallel.ring import FlashRingAttention, RingAttention, has_flash

Attend = Callable[..., torch.Tensor]

# Renamed in torch 2.13.
_all_gather = (
    getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
)


class AllGather:
    """Every rank gathers all keys and values, and attends with its own queries (Llama 3, section 3.3.2)."""

    passes = ("queries_at", "keys_at")
    traceable = True

    def __init__(self, group: ContextGroup) -> None:
        self._group = group
        self.order = head_tail if group.load_balance else contiguous

    def replace(self, inner: nn.Module) -> Attend:
        attend = inner.forward
        group = self._group

        def forward(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            documents: Any = None,
            sinks: torch.Tensor | None = None,
        ) -> torch.Tensor:
            both = torch.cat((k, v), dim=-1)
            # Along the first dimension: along another one, torch 2.13 may return a view whose wait() has no
            # gradient (where the first size is the number of ranks and those in between are 1).
            by_rank = _wait(_all_gather(both, gather_dim=0, group=group.process_group))
            gathered = torch.cat(by_rank.chunk(group.degree), dim=2)
            keys, values = gathered.split((k.shape[-1], v.shape[-1]), dim=-1)
            keys_at = self.order(k.shape[2] * group.degree, group.degree, device=q.device)
            queries_at = keys_at.chunk(group.degree)[group.rank]
            given = {} if sinks is None else {"sinks": sinks}
            return attend(q, keys, values, documents, queries_at=queries_at, keys_at=keys_at, **given)

        return forward


class Ulysses:
    """All-to-all from parts of the sequence to parts of the heads and back (Jacobs et al., 2023)."""

    passes = ()
    traceable = True

    def __init__(self, group: ContextGroup) -> None:
        self._group = group
        self.order = contiguous

    def replace(self, inner: nn.Module) -> Attend:
        attend = inner.forward

        def forward(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            documents: Any = None,
            sinks: torch.Tensor | None = None,
        ) -> torch.Tensor:
            mine = {} if sinks is None else {"sinks": sinks.chunk(self._group.degree)[self._group.rank]}
            whole = attend(*(self._to_heads(x) for x in (q, k, v)), documents, **mine)
            return self._to_sequence(whole)

        return forward

    def _to_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, heads, seq / cp, head_dim) -> (batch, heads / cp, seq, head_dim)"""
        by_rank = x.unflatten(1, (self._group.degree, -1)).movedim(1, 0)
        return self._exchange(by_rank).movedim(0, 2).flatten(2, 3)

    def _to_sequence(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, heads / cp, seq, head_dim) -> (batch, heads, seq / cp, head_dim)"""
        by_rank = x.unflatten(2, (self._group.degree, -1)).movedim(2, 0)
        return self._exchange(by_rank).movedim(0, 1).flatten(1, 2)

    def _exchange(self, by_rank: torch.Tensor) -> torch.Tensor:
        return _wait(
            collectives.all_to_all_single_autograd(
                by_rank.contiguous(), None, None, self._group.process_group
            )
        )


class Ring:
    """Keys and values travel round the ranks; partial results are merged by their log-sum-exp
    (Liu et al., 2023, "Ring Attention with Blockwise Transformers")."""

    passes = None
    traceable = False

    def __init__(self, group: ContextGroup) -> None:
        self._group = group
        self.order = head_tail if group.load_balance else contiguous

    def replace(self, inner: nn.Module) -> Attend:
        group = self._group
        pattern = _pattern_of(inner)
        plain = not pattern.requires

        def forward(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            documents: Any = None,
            sinks: torch.Tensor | None = None,
        ) -> torch.Tensor:
            result: torch.Tensor
            if plain and documents is None and has_flash(q) and v.shape[-1] <= q.shape[-1]:
                padded = F.pad(v, (0, q.shape[-1] - v.shape[-1]))  # the kernels take heads of one size
                result = FlashRingAttention.apply(
                    q, k, padded, pattern.scale, group.load_balance, group.process_group
                )
                return result[..., : v.shape[-1]]
            documents = getattr(documents, "ids", documents)  # hekaton_blocks.PackedDocuments has more
            parts = self.order(k.shape[2] * group.degree, group.degree, device=q.device).chunk(group.degree)
            result = RingAttention.apply(q, k, v, sinks, pattern, documents, parts, group.process_group)
            return result

        return forward


def _pattern_of(inner: nn.Module) -> AttentionPattern:
    """What a module attends to that the ring computes in its place.

    :raises ConfigError: for one that requires something and does not describe it.
    """
    pattern: AttentionPattern | None = getattr(inner, "pattern", None)
    if pattern is None and getattr(inner, "requires", ()):
        raise ConfigError(
            f"the ring cannot compute {', '.join(inner.requires)} in the place of {type(inner).__name__}, "
            "which has no hekaton_blocks.AttentionPattern as its pattern",
            hint="choose another parallelism.context_parallel_strategy",
        )
    return AttentionPattern(scale=getattr(inner, "scale", None)) if pattern is None else pattern


def _wait(x: torch.Tensor) -> torch.Tensor:
    wait = getattr(x, "wait", None)  # an AsyncCollectiveTensor in eager mode, a plain tensor when traced
    return x if wait is None else wait()


def allgather(section: Any, group: ContextGroup) -> AllGather:
    return AllGather(group)


def ulysses(section: Any, group: ContextGroup) -> Ulysses:
    return Ulysses(group)


def ring(section: Any, group: ContextGroup) -> Ring:
    return Ring(group)
