"""gpt-oss (OpenAI, 2025, arXiv 2508.10925), with torchtitan's parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton.grouped_products import GroupedProduct
from hekaton_blocks import (
    Attention,
    AttentionPattern,
    Decoder,
    LayerCount,
    MoE,
    MoEConfig,
    Router,
    TransformerBlock,
    YarnScaling,
    check_heads,
    rotary_table,
)
from hekaton_blocks.experts import grouped_linear, local, share

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model
ALPHA = 1.702
"""Of the gate's sigmoid: x * sigmoid(1.702 x) is close to GELU (Hendrycks and Gimpel, 2016)."""

SCALING = YarnScaling(factor=32.0, truncate=False)


@dataclass(frozen=True, kw_only=True)
class GptOssConfig:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_kv_heads: key/value heads, each shared by ``n_heads / n_kv_heads`` query heads.
    :param head_dim: channels of a head; ``n_heads * head_dim`` need not be ``dim``.
    :param window: tokens that a query sees in even layers, itself among them; in odd ones it sees all before.
    :param moe: the experts of every layer.
    :param swiglu_limit: gates are at most this, what they gate at most this and at least its negative.
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_heads: Annotated[PositiveInt, Mathematics]
    n_kv_heads: Annotated[PositiveInt, Mathematics]
    moe: Annotated[MoEConfig, Mathematics]
    head_dim: Annotated[PositiveInt, Mathematics] = 64
    window: Annotated[PositiveInt, Mathematics] = 128
    vocab_size: PositiveInt = 201_088
    swiglu_limit: Annotated[float, Field(gt=0, le=1e6), Mathematics] = 7.0
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-5
    rope_theta: Annotated[float, Field(gt=1, le=1e30), Mathematics] = 150_000.0
    rope_scaling: Annotated[YarnScaling | None, Mathematics] = SCALING

    def __post_init__(self) -> None:
        check_heads(self)
        scaling = self.rope_scaling
        if scaling is not None and (scaling.mscale, scaling.mscale_all_dim) != (1.0, 0.0):
            raise ConfigError("rope_scaling has an mscale or mscale_all_dim: the model has YaRN's own factor")
        if self.moe.n_shared_experts:
            raise ConfigError(f"n_shared_experts = {self.moe.n_shared_experts}: the model has none")

    def pattern(self, layer: int) -> AttentionPattern:
        """What a layer attends to."""
        return AttentionPattern(window=None if layer % 2 else self.window, sinks=True)


class Experts(nn.Module):
    """Feed-forward layers with biases and a clamped SwiGLU (section 2.1 and ``swiglu`` in OpenAI's
    ``gpt_oss/torch/model.py``): rows of ``mlp1`` are gates and what they gate, in turns.

    ``mlp1_weight`` is (n_experts, 2 * hidden_dim, dim), ``mlp2_weight`` (n_experts, dim, hidden_dim). Under
    expert-tensor parallel a rank has some of the pairs, and its results are parts of a sum.
    """

    def __init__(self, n_experts: int, dim: int, hidden_dim: int, *, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.mlp1_weight = nn.Parameter(torch.empty(n_experts, 2 * hidden_dim, dim))
        self.mlp1_bias = nn.Parameter(torch.empty(n_experts, 2 * hidden_dim))
        self.mlp2_weight = nn.Parameter(torch.empty(n_experts, dim, hidden_dim))
        self.mlp2_bias = nn.Parameter(torch.empty(n_experts, dim))
        self.product: GroupedProduct = grouped_linear

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """:param rows: (n, dim), sorted by expert; :param counts: rows of each; :returns: (n, dim)"""
        both = self.product(rows, local(self.mlp1_weight), counts, bias=local(self.mlp1_bias))
        gate, up = both[..., ::2].clamp(max=self.limit), both[..., 1::2].clamp(-self.limit, self.limit)
        hidden = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
        return self.product(hidden, local(self.mlp2_weight), counts, bias=share(self.mlp2_bias))


def block(config: GptOssConfig, number: int) -> TransformerBlock:
    """A layer: attention with sinks and biases, in a window or not, and experts."""
    dim, moe = config.dim, config.moe
    attention = Attention(
        dim,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        rotary_halves=True,
        bias=True,
        pattern=config.pattern(number),
    )
    experts = Experts(moe.n_experts, dim, moe.hidden_dim, limit=config.swiglu_limit)
    return TransformerBlock(
        config, attention, moe=MoE(dim, moe, router=Router(dim, moe, bias=True), experts=experts)
    )


class GptOss(Decoder):
    """The decoder."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__(config, block, patterns=[config.pattern(0), config.pattern(1)])

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines, as ``rotary_table`` gives them."""
        config = self.config
        return (rotary_table(positions, config.head_dim, config.rope_theta, config.rope_scaling),)
