"""DeepSeek V3 (DeepSeek-AI, 2024), and V2 before it, with torchtitan's parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton_blocks import (
    AttentionPattern,
    DocumentAttention,
    Documents,
    FeedForward,
    LayerCount,
    MoE,
    MoEConfig,
    MultiTokenDecoder,
    MultiTokenLayer,
    TransformerBlock,
    YarnScaling,
    apply_rotary,
    rotary_table,
)  # fmt: skip

LATENT_EPS = 1e-6
"""Of the norms of latents, in every published model and in transformers, whatever ``rms_norm_eps`` says."""

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_dense_layers: the first layers, whose feed-forward layer is dense.
    :param inter_dim: width inside the feed-forward layer of these.
    :param moe: the experts of all further layers.
    :param q_lora_rank: channels of the latent that queries are made from; 0 for queries made at once.
    :param kv_lora_rank: channels of the latent that keys and values are made from.
    :param qk_nope_head_dim: channels of a query and key that positions do not rotate.
    :param qk_rope_head_dim: channels that they do; those of the key are shared by all heads.
    :param v_head_dim: channels of a value.
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    :param n_mtp_layers: layers that predict one token more, for the objective ``multi_token``.
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_dense_layers: NonNegativeInt
    n_heads: Annotated[PositiveInt, Mathematics]
    inter_dim: PositiveInt
    moe: Annotated[MoEConfig | None, Mathematics] = None
    q_lora_rank: NonNegativeInt = 0
    kv_lora_rank: PositiveInt = 512
    qk_nope_head_dim: Annotated[PositiveInt, Mathematics] = 128
    qk_rope_head_dim: Annotated[PositiveInt, Mathematics] = 64
    v_head_dim: Annotated[PositiveInt, Mathematics] = 128
    vocab_size: PositiveInt = 102_400
    n_mtp_layers: Annotated[Literal[0, 1], Mathematics] = 0
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-6
    rope_theta: Annotated[float, Field(gt=1, le=1e30), Mathematics] = 10_000.0
    rope_scaling: Annotated[YarnScaling | None, Mathematics] = None

    def __post_init__(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim = {self.qk_rope_head_dim} is odd; rotary positions turn channels in pairs"
            )
        if self.n_dense_layers > self.n_layers:
            raise ConfigError(f"n_dense_layers = {self.n_dense_layers} of n_layers = {self.n_layers}")
        if self.moe is None and self.n_dense_layers < self.n_layers:
            raise ConfigError(
                f"layers from {self.n_dense_layers} on have experts, and moe does not say which",
                hint=f"choose n_dense_layers = {self.n_layers} for a dense model",
            )

        if self.n_mtp_layers and self.experts is None:
            raise ConfigError("n_mtp_layers = 1: the layer for a second token has experts, and no other has")

    @property
    def experts(self) -> MoEConfig | None:
        """Those of the layers that have some."""
        return self.moe if self.n_dense_layers < self.n_layers else None

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        factor = 1.0 if self.rope_scaling is None else self.rope_scaling.softmax_factor
        return self.qk_head_dim**-0.5 * factor


class Attention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1).

    Queries, and keys with values, are made from latents of low rank. Positions rotate channels of their own,
    which for keys are made once for all heads.
    """

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__()
        self.config = config
        queries = config.n_heads * config.qk_head_dim
        low_rank = config.q_lora_rank > 0
        self.wq = None if low_rank else nn.Linear(config.dim, queries, bias=False)
        self.wq_a = nn.Linear(config.dim, config.q_lora_rank, bias=False) if low_rank else None
        self.q_norm = nn.RMSNorm(config.q_lora_rank, eps=LATENT_EPS) if low_rank else None
        self.wq_b = nn.Linear(config.q_lora_rank, queries, bias=False) if low_rank else None
        self.wkv_a = nn.Linear(config.dim, config.kv_lora_rank + config.qk_rope_head_dim, bias=False)
        self.kv_norm = nn.RMSNorm(config.kv_lora_rank, eps=LATENT_EPS)
        self.shared_key = nn.Identity()  # a name for the plan: the place where heads begin to differ
        self.wkv_b = nn.Linear(
            config.kv_lora_rank, config.n_heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False
        )
        self.wo = nn.Linear(config.n_heads * config.v_head_dim, config.dim, bias=False)
        self.inner = DocumentAttention(AttentionPattern(scale=config.softmax_scale))

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """:param x: (batch, seq, dim); :param rotary: from ``rotary_table``; :returns: (batch, seq, dim)"""
        config, rope = self.config, self.config.qk_rope_head_dim
        latent, shared = self.wkv_a(x).split((config.kv_lora_rank, rope), dim=-1)
        # The number of heads is read off the projections: under tensor parallel a rank has only some of them.
        q = self._queries(x).unflatten(-1, (-1, config.qk_head_dim))
        kv = self.wkv_b(self.kv_norm(latent)).unflatten(-1, (-1, config.qk_nope_head_dim + config.v_head_dim))
        q_nope, q_rope = q.split((config.qk_nope_head_dim, rope), dim=-1)
        k_nope, v = kv.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        k_rope = apply_rotary(self.shared_key(shared).unsqueeze(2), rotary)
        q = torch.cat((q_nope, apply_rotary(q_rope, rotary)), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(*k_nope.shape[:-1], rope)), dim=-1)
        out = self.inner(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), documents)
        return self.wo(out.transpose(1, 2).flatten(-2))

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        if self.wq is not None:
            return self.wq(x)
        assert self.wq_a is not None
        assert self.q_norm is not None
        assert self.wq_b is not None
        return self.wq_b(self.q_norm(self.wq_a(x)))


def block(config: DeepSeekV3Config, number: int) -> TransformerBlock:
    """A layer: the first ones are dense, the others have experts."""
    return TransformerBlock(config, Attention(config), **_feed_forward(config, number))


def _feed_forward(config: DeepSeekV3Config, number: int) -> dict[str, nn.Module]:
    if config.moe is not None and number >= config.n_dense_layers:
        return {"moe": MoE(config.dim, config.moe)}
    return {"feed_forward": FeedForward(config.dim, config.inter_dim)}


def second_token(config: DeepSeekV3Config, number: int) -> MultiTokenLayer:
    """The layer for a second token."""
    return MultiTokenLayer(config, Attention(config), **_feed_forward(config, number))


class DeepSeekV3(MultiTokenDecoder):
    """The decoder."""

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__(config, block, second_token)

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines."""
        config = self.config
        return (rotary_table(positions, config.qk_rope_head_dim, config.rope_theta, config.rope_scaling),)
