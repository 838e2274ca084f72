"""A layer of experts: each token passes through the few that a router chooses for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.distributed import ProcessGroup

from hekaton.distributed import all_sum
from hekaton.recomputation import is_recomputed
from hekaton.terms import add_term
from hekaton_blocks.dispatch import Dispatcher, LocalDispatcher
from hekaton_blocks.experts import GroupedExperts, count_of_each
from hekaton_blocks.feed_forward import FeedForward
from hekaton_blocks.routing import MoEConfig, Router, Routing

SEQUENCE_BALANCE, BATCH_BALANCE = "sequence_balance", "batch_balance"
"""Names of the terms of the loss."""


class MoE(nn.Module):
    """The experts of a layer with their router, and the shared ones.

    Buffers, filled by :meth:`reset_buffers` and moved by :func:`hekaton_blocks.balance.update_experts` once
    per optimizer step: ``expert_bias``, and ``load``, each expert's share of the last step's tokens times the
    number of experts, where the loss has a term over the global batch.

    :ivar dispatcher: brings tokens to their experts; expert parallel sets another one.
    :ivar copies: how many ranks apply an expert to the same token, each a part of it; the layout sets it.
    :ivar last_step: max load over mean load, and tokens that reached no expert, of the last step; see
        :func:`hekaton_blocks.balance.report_experts`.
    :ivar sequence_groups: the processes that hold other parts of the same sequences, set by the layout.
    :ivar even: give every expert the same number of tokens (``debug.moe_force_load_balance``).
    """

    optional_buffers: ClassVar = {"expert_bias": "moe.bias_rate", "load": "moe.batch_balance"}
    """Buffers that checkpoints of other programs may lack, and the fields of the model that bring them:
    torchtitan's have an expert bias in every model, and no load."""
    expert_bias: torch.Tensor | None
    load: torch.Tensor | None
    tokens_per_expert: torch.Tensor
    tokens_handled: torch.Tensor

    def __init__(self, dim: int, config: MoEConfig, *, router: nn.Module | None = None,
                 experts: nn.Module | None = None) -> None:  # fmt: skip
        """:param router: in place of :class:`Router`; :param experts: in place of :class:`GroupedExperts`."""
        super().__init__()
        self.config = config
        self.router = Router(dim, config) if router is None else router
        self.experts = (
            GroupedExperts(config.n_experts, dim, config.hidden_dim) if experts is None else experts
        )
        shared = config.hidden_dim * config.n_shared_experts
        self.shared_experts = FeedForward(dim, shared) if shared else None
        each = torch.empty(config.n_experts, dtype=torch.float32)
        self.register_buffer("expert_bias", None if config.bias_rate is None else each)
        self.register_buffer("load", each.clone() if config.batch_balance else None)
        counts = torch.empty(config.n_experts, dtype=torch.int64)
        self.register_buffer("tokens_per_expert", counts, persistent=False)
        self.register_buffer("tokens_handled", counts.new_empty(1), persistent=False)
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.sequence_groups: Sequence[ProcessGroup] = ()
        self.copies = 1
        self.even = False
        self.last_step: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def n_experts(self) -> int:
        return self.config.n_experts

    def reset_buffers(self) -> None:
        """An expert bias of 0, an even load, nothing counted."""
        if self.expert_bias is not None:
            self.expert_bias.zero_()
        if self.load is not None:
            self.load.fill_(1.0)
        self.tokens_per_expert.zero_()
        self.tokens_handled.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: (batch, seq, dim)"""
        config = self.config
        routing = self.router(x, self.expert_bias, even=self.even)
        if self.training and not is_recomputed():
            with torch.no_grad():
                self.tokens_per_expert += self._counts(routing.experts)
        out = self.dispatcher(
            x.flatten(0, 1),
            routing.experts,
            routing.weights,
            self._apply_experts,
            n_experts=config.n_experts,
            weights_on_input=config.weights_on_input,
        ).view_as(x)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        if not torch.is_grad_enabled():
            return out  # nothing is trained on the terms
        if config.sequence_balance:
            out = add_term(out, SEQUENCE_BALANCE, self._sequence_balance(routing, rows=len(x)))
        if config.batch_balance:
            out = add_term(out, BATCH_BALANCE, self._batch_balance(routing, rows=len(x)))
        return out

    def _apply_experts(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if self.training and not is_recomputed():
            self.tokens_handled += len(rows)
        out: torch.Tensor = self.experts(rows, counts)
        return out

    def _counts(self, experts: torch.Tensor) -> torch.Tensor:
        """(n_experts,), how many tokens of this rank chose each."""
        return count_of_each(experts.flatten().sort().values, self.config.n_experts)

    def _sequence_balance(self, routing: Routing, *, rows: int) -> torch.Tensor:
        """The sum over sequences of ``sum_i f_i P_i``, 1 each where tokens and scores are spread evenly.

        ``f_i`` is the share of expert ``i`` in the choices, which the scores alone make, without the expert
        bias, times the number of experts; ``P_i`` the mean of its normalised scores (DeepSeek V3, equations
        17 to 20). Of a sequence that is cut, each process gives what its own tokens contribute.
        """
        config = self.config
        scores = routing.scores / routing.scores.sum(-1, keepdim=True)
        scores = scores.unflatten(0, (rows, -1))
        with torch.no_grad():
            best = scores.topk(config.top_k, sorted=False).indices
            sequence = torch.arange(rows, device=best.device)[:, None, None] * config.n_experts
            counts = count_of_each((best + sequence).flatten().sort().values, rows * config.n_experts)
            parts = 1
            for group in self.sequence_groups:
                counts = all_sum(counts, group)
                parts *= group.size()
            tokens = scores.shape[1] * parts
            share = counts.unflatten(0, (rows, -1)) * (config.n_experts / (config.top_k * tokens))
        return (share * scores.sum(1)).sum() / tokens

    def _batch_balance(self, routing: Routing, *, rows: int) -> torch.Tensor:
        """The sum over sequences of ``sum_i f_i P_i``, with ``f_i`` of the global batch of the step before.

        Those of this step are known only once its last microbatch has passed through; a step later they are
        those of every process and microbatch, so that the loss is the same however the step is cut.
        """
        assert self.load is not None
        scores = routing.scores / routing.scores.sum(-1, keepdim=True)
        parts = 1
        for group in self.sequence_groups:
            parts *= group.size()
        return (self.load.to(scores.dtype) * scores).sum() / (len(scores) // rows * parts)


def feed_forward_of(dim: int, hidden_dim: int, experts: MoEConfig | None) -> dict[str, nn.Module]:
    """What :class:`hekaton_blocks.TransformerBlock` is given beside attention: experts where there are some,
    otherwise a feed-forward layer.

    :param hidden_dim: width inside the feed-forward layer.
    """
    if experts is not None:
        return {"moe": MoE(dim, experts)}
    return {"feed_forward": FeedForward(dim, hidden_dim)}
