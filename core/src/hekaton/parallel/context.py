"""Context parallel: the sequence split over ranks, and the inner attentions replaced by a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from hekaton.errors import ConfigError
from hekaton.objective import BatchTensor
from hekaton.parallel.contract import check_attention
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

    passes: Sequence[str] | None
    """What the replaced attention is called with beside ``q``, ``k``, ``v`` and ``documents``; ``None`` where
    it is not called any more."""

    traceable: bool
    """Whether ``torch.compile`` can trace what :meth:`replace` returns; it stays uncompiled otherwise."""

    def replace(self, inner: nn.Module) -> Callable[..., torch.Tensor]:
        """The forward that takes the place of an inner attention's."""


class AttentionBackend(Protocol):
    """One of the ways to compute an inner attention, which offers them by name in ``backends``, and computes
    by the one whose name a run puts in its attribute ``backend``."""

    @property
    def supports(self) -> Sequence[str]:
        """What it can do, in the words of ``requires``, and ``positions`` where it takes ``queries_at`` and
        ``keys_at``."""

    @property
    def devices(self) -> Sequence[str]:
        """Types of devices, such as ``cuda``, that it is for; empty for all."""

    @property
    def dtypes(self) -> Sequence[str]:
        """What it computes in, such as ``bfloat16``; empty for everything."""

    @property
    def missing(self) -> Callable[[], str]:
        """Says what it needs and this machine lacks; an empty string where nothing is missing."""


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


def use_attention_backend(model: nn.Module, patterns: Sequence[str], name: str) -> None:
    """Have every inner attention that the plan names compute by this backend, which it offers."""
    for module in inner_attentions(model, patterns):
        module.backend = name  # type: ignore[assignment]


def apply_context_parallel(model: nn.Module, patterns: Sequence[str], strategy: ContextStrategy) -> None:
    """Replace the forward of every inner attention that the plan names.

    :raises ConfigError: for one that cannot be called as the strategy does.
    """
    for name, module in matching(model, patterns):
        if strategy.passes is not None:
            check_attention(name, module, strategy.passes)
        module.forward = strategy.replace(module)


def check_sequences(tensors: Sequence[BatchTensor], strategy: ContextStrategy, *, degree: int) -> None:
    """Check that context parallel can split what an objective declares, whatever its sequences are of.

    :raises ConfigError: naming a tensor with a sequence that cannot be cut evenly.
    """
    stretches = 2 * degree if strategy.order is head_tail else degree
    for one in tensors:
        length = None if one.sequence is None else one.shape[one.sequence]
        if length is not None and length % stretches:
            twice = " (twice, for head-tail load balancing)" if stretches > degree else ""
            raise ConfigError(
                f"'{one.name}' has a sequence of {length}, which is not divisible by "
                f"parallelism.context_parallel_degree = {degree}{twice}",
                hint=f"choose sizes that make it a multiple of {stretches}",
            )


def split_sequence(
    tensors: Mapping[str, torch.Tensor],
    sequence: Mapping[str, int | None],
    strategy: ContextStrategy,
    group: ContextGroup,
) -> dict[str, torch.Tensor]:
    """This rank's part of the tensors of a batch.

    :param tensors: (rows, ...), of whole sequences.
    :param sequence: name -> which dim of a row is the sequence; ``None`` for a tensor that stays whole.
    """
    split = {}
    for name, value in tensors.items():
        dim = sequence[name]
        if dim is None:
            split[name] = value
            continue
        length = value.shape[dim + 1]
        at = strategy.order(length, group.degree, device=value.device).chunk(group.degree)[group.rank]
        split[name] = value.index_select(dim + 1, at)
    return split
