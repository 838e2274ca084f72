"""Context parallel: the sequence split over ranks, and the inner attentions replaced by a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from hekaton.parallel.plan import matching


@dataclass(frozen=True, kw_only=True)
class ContextGroup:
    """The ranks that share a sequence.

    :param load_balance: give every rank an early and a late part, so that causal attention costs each the
        same.
    """

    process_group: dist.ProcessGroup
    load_balance: bool

    @property
    def rank(self) -> int:
        return self.process_group.rank()

    @property
    def degree(self) -> int:
        return self.process_group.size()


class ContextStrategy(Protocol):
    """What a context-parallel strategy's ``build`` returns."""

    order: Callable[..., torch.Tensor]
    """``order(seq_len, degree, device=...)``: the positions in the order in which ranks hold them."""

    traceable: bool
    """Whether ``torch.compile`` can trace what :meth:`replace` returns; it stays uncompiled otherwise."""

    def replace(self, inner: nn.Module) -> Callable[..., torch.Tensor]:
        """The forward that takes the place of an inner attention's."""


def contiguous(seq_len: int, degree: int, *, device: torch.device | None = None) -> torch.Tensor:
    """Each rank holds one stretch of the sequence. :returns: (seq_len,)"""
    return torch.arange(seq_len, device=device)


def head_tail(seq_len: int, degree: int, *, device: torch.device | None = None) -> torch.Tensor:
    """The sequence in ``2 * degree`` stretches, of which rank ``r`` holds number ``r`` and, from the end,
    number ``r``. :returns: (seq_len,)"""
    stretches = torch.arange(seq_len, device=device).chunk(2 * degree)
    return torch.cat([piece for rank in range(degree) for piece in (stretches[rank], stretches[-1 - rank])])


def inner_attentions(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules where attention must see the whole sequence, as a plan names them."""
    return [module for _, module in matching(model, patterns)]


def apply_context_parallel(model: nn.Module, patterns: Sequence[str], strategy: ContextStrategy) -> None:
    """Replace the forward of every inner attention that the plan names."""
    for module in inner_attentions(model, patterns):
        module.forward = strategy.replace(module)


def split_sequence(
    inputs: Mapping[str, torch.Tensor], targets: torch.Tensor, strategy: ContextStrategy, group: ContextGroup
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """This rank's part of a batch.

    Positions are made where there are none: a part's own count would start at 0. ``documents`` stays whole.

    :param inputs: tensors of (batch, seq, ...); :param targets: (batch, seq, ...)
    :returns: inputs and targets of (batch, seq / cp, ...).
    """
    at = strategy.order(targets.shape[1], group.degree, device=targets.device).chunk(group.degree)[group.rank]
    split = {
        name: value if name == "documents" else value.index_select(1, at) for name, value in inputs.items()
    }
    split.setdefault("positions", at.expand(targets.shape[0], -1))
    return split, targets.index_select(1, at)
