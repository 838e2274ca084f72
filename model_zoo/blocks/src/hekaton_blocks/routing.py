"""Which experts each token goes to, and with what weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton.errors import ConfigError

ExpertGroupScore = Literal["max", "sum_of_top2"]
Rate = AtResume("notice")  # how the router is trained, not what it computes


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A layer of experts.

    :param n_experts: experts that tokens are routed to.
    :param top_k: experts of each token.
    :param hidden_dim: width inside an expert.
    :param n_shared_experts: experts that every token passes through, as one layer of as many times the
        width.
    :param score: what makes scores of the router's logits.
    :param renormalise: divide the weights of a token's experts by their sum (``norm_topk_prob``).
    :param route_scale: factor on the weights.
    :param weights_on_input: scale the input of each expert by its weight, instead of its output (Llama 4).
    :param n_groups: groups of neighbouring experts, of which each token may use ``n_limited_groups``.
    :param group_score: score of a group: its best expert (DeepSeek V2) or the sum of its best two (V3).
    :param bias_rate: how much ``expert_bias``, which takes part in the choice of experts and not in their
        weights, moves per step against the load (Wang et al., 2024, arXiv 2408.15664); ``None`` for no bias.
    :param sequence_balance: weight of the sequence-wise balance loss (DeepSeek V3, arXiv 2412.19437,
        equations 17 to 20).
    :param batch_balance: weight of the balance loss over the global batch (Qiu et al., 2025,
        arXiv 2501.11873).
    """

    n_experts: PositiveInt
    top_k: PositiveInt
    hidden_dim: PositiveInt
    n_shared_experts: NonNegativeInt = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False
    route_scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    weights_on_input: bool = False
    n_groups: PositiveInt = 1
    n_limited_groups: PositiveInt = 1
    group_score: ExpertGroupScore = "sum_of_top2"
    bias_rate: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Rate] = None
    sequence_balance: Annotated[float, Field(ge=0, le=1e3), Rate] = 0.0
    batch_balance: Annotated[float, Field(ge=0, le=1e3), Rate] = 0.0

    def __post_init__(self) -> None:
        if self.top_k > self.n_experts:
            raise ConfigError(f"top_k = {self.top_k} is more than n_experts = {self.n_experts}")
        if self.n_experts % self.n_groups:
            raise ConfigError(f"n_groups = {self.n_groups} does not divide n_experts = {self.n_experts}")
        if self.n_limited_groups > self.n_groups:
            raise ConfigError(
                f"n_limited_groups = {self.n_limited_groups} is more than n_groups = {self.n_groups}"
            )
        group = self.n_experts // self.n_groups
        if self.n_limited_groups * group < self.top_k:
            raise ConfigError(
                f"top_k = {self.top_k} is more than the {self.n_limited_groups * group} experts of "
                f"n_limited_groups = {self.n_limited_groups}"
            )
        if self.n_groups > 1 and self.group_score == "sum_of_top2" and group < 2:
            raise ConfigError(f"n_groups = {self.n_groups}: groups of one expert have no best two")


class Routing(NamedTuple):
    """Where tokens go; every tensor has a row per token.

    :param experts: (tokens, top_k), the numbers of its experts.
    :param weights: (tokens, top_k), theirs in its output; float32 or better.
    :param scores: (tokens, n_experts), the scores of all experts; float32 or better.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor


class Gate(nn.Linear):
    """The router's projection, computed in float32 or better: near ties are common, and decide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.linear(x.to(wide), self.weight.to(wide), bias)


class Router(nn.Module):
    """Top-k routing by softmax or sigmoid scores, among all experts or those of a token's best groups."""

    def __init__(self, dim: int, config: MoEConfig, *, bias: bool = False) -> None:
        """:param bias: whether the projection has one (GPT-OSS)."""
        super().__init__()
        self.config = config
        self.gate = Gate(dim, config.n_experts, bias=bias)

    def forward(self, x: torch.Tensor, expert_bias: torch.Tensor | None, *, even: bool = False) -> Routing:
        """Choose the experts of each token.

        :param x: (batch, seq, dim)
        :param expert_bias: (n_experts,), added to the scores for the choice alone.
        :param even: give every expert the same number of tokens, whatever the scores
            (``debug.moe_force_load_balance``).
        """
        config = self.config
        logits = self.gate(x).flatten(0, 1)
        scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
        with torch.no_grad():
            if even:
                places = torch.arange(scores.shape[0] * config.top_k, device=scores.device)
                experts = (places % config.n_experts).unflatten(0, (-1, config.top_k))
            else:
                if expert_bias is not None:
                    choice = scores + expert_bias
                else:
                    # Logits have the order of scores, and differ where large ones give scores of 1.
                    choice = logits if config.n_groups == 1 else scores
                experts = self._allowed(choice).topk(config.top_k, sorted=False).indices
        weights = scores.gather(1, experts)
        if config.renormalise:
            # As published for DeepSeek V3: sigmoid scores may all be tiny.
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts, weights * config.route_scale, scores)

    def _allowed(self, choice: torch.Tensor) -> torch.Tensor:
        """The scores, those of experts outside a token's best groups at minus infinity.

        :param choice: (tokens, n_experts)
        """
        config = self.config
        if config.n_groups == 1:
            return choice
        groups = choice.unflatten(-1, (config.n_groups, -1))
        top = groups.topk(1 if config.group_score == "max" else 2, dim=-1).values
        of_group = top.sum(-1)
        best = of_group.topk(config.n_limited_groups, sorted=False).indices
        left_out = torch.ones_like(of_group, dtype=torch.bool).scatter(-1, best, False)
        return groups.masked_fill(left_out.unsqueeze(-1), -torch.inf).flatten(-2)
