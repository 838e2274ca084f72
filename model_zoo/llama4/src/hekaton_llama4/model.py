"""Llama 4 (Meta, 2025), the language models of Scout and Maverick, with torchtitan's parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton_blocks import (
    AttentionPattern,
    Decoder,
    DocumentAttention,
    Documents,
    LayerCount,
    MoEConfig,
    RopeScaling,
    TransformerBlock,
    apply_rotary,
    check_heads,
    feed_forward_of,
    rotary_table,
)  # fmt: skip

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model


@dataclass(frozen=True, kw_only=True)
class Llama4Config:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_kv_heads: key/value heads, each shared by ``n_heads / n_kv_heads`` query heads.
    :param hidden_dim: width inside the feed-forward layer of layers without experts.
    :param moe: the experts of the layers that have some.
    :param interleave_moe_layer_step: every n-th layer has experts: 1 for all (Scout), 2 for the odd
        ones (Maverick).
    :param every_n_layers_nope: every n-th layer is without positions (NoPE), and attends to the whole
        document; 0 for none.
    :param attention_chunk_size: all other layers attend inside chunks of so many tokens; ``None``: to the
        whole document.
    :param qk_norm: in layers with positions, divide each query and key by its root mean square (Scout).
    :param attn_scale: in layers without positions, the query at position ``p`` is multiplied by
        ``1 + attn_scale * ln(1 + floor((p + 1) / floor_scale))`` (Nakanishi, 2025, arXiv 2501.19399).
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_heads: Annotated[PositiveInt, Mathematics]
    n_kv_heads: Annotated[PositiveInt, Mathematics]
    hidden_dim: PositiveInt
    moe: Annotated[MoEConfig | None, Mathematics] = None
    interleave_moe_layer_step: PositiveInt = 1
    head_dim: Annotated[PositiveInt, Mathematics] = 128
    every_n_layers_nope: Annotated[NonNegativeInt, Mathematics] = 4
    attention_chunk_size: Annotated[PositiveInt | None, Mathematics] = 8192
    qk_norm: Annotated[bool, Mathematics] = True
    attn_scale: Annotated[float, Field(ge=0, le=100), Mathematics] = 0.1
    floor_scale: Annotated[PositiveInt, Mathematics] = 8192
    vocab_size: PositiveInt = 202_048
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-5
    rope_theta: Annotated[float, Field(gt=1, le=1e30), Mathematics] = 500_000.0
    rope_scaling: Annotated[RopeScaling | None, Mathematics] = None

    def __post_init__(self) -> None:
        check_heads(self)

    def has_positions(self, layer: int) -> bool:
        """Whether a layer, counted from 0, rotates queries and keys."""
        return not self.every_n_layers_nope or (layer + 1) % self.every_n_layers_nope > 0

    def pattern(self, layer: int) -> AttentionPattern:
        """What a layer attends to."""
        return AttentionPattern(chunk=self.attention_chunk_size if self.has_positions(layer) else None)

    @property
    def layers_with_experts(self) -> range:
        step = self.interleave_moe_layer_step
        return range(0) if self.moe is None else range(step - 1, self.n_layers, step)


class Attention(nn.Module):
    """Grouped-query attention: with rotary positions inside chunks, or over all of a document without."""

    def __init__(self, config: Llama4Config, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.has_positions = config.has_positions(layer)
        self.qk_norm_eps = config.norm_eps if config.qk_norm and self.has_positions else None
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self.inner = DocumentAttention(config.pattern(layer))

    def forward(
        self, x: torch.Tensor, rotary: torch.Tensor, temperature: torch.Tensor, documents: Documents
    ) -> torch.Tensor:
        """Attend.

        :param x: (batch, seq, dim)
        :param rotary: from ``rotary_table``; :param temperature: from :func:`temperature_of`.
        :returns: (batch, seq, dim)
        """
        # The number of heads is read off the projection: under tensor parallel a rank has only some of them.
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        if self.has_positions:
            q, k = (apply_rotary(heads, rotary) for heads in (q, k))
        else:
            q = (q * temperature).type_as(q)
        if self.qk_norm_eps is not None:
            q, k = (F.rms_norm(heads, (self.head_dim,), eps=self.qk_norm_eps) for heads in (q, k))
        out = self.inner(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), documents)
        projected: torch.Tensor = self.wo(out.transpose(1, 2).flatten(-2))
        return projected


def block(config: Llama4Config, number: int) -> TransformerBlock:
    """A layer: with experts, or dense."""
    experts = config.moe if number in config.layers_with_experts else None
    feed_forward = feed_forward_of(config.dim, config.hidden_dim, experts)
    return TransformerBlock(config, Attention(config, number), **feed_forward)


class Llama4(Decoder):
    """The decoder."""

    def __init__(self, config: Llama4Config) -> None:
        patterns = [config.pattern(number) for number in range(config.n_layers)]
        super().__init__(config, block, patterns=patterns)

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines for the layers with positions, and a temperature for those without."""
        config = self.config
        rotary = rotary_table(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        return rotary, temperature_of(positions, config.attn_scale, config.floor_scale)


def temperature_of(positions: torch.Tensor, attn_scale: float, floor_scale: int) -> torch.Tensor:
    """What the queries of layers without positions are multiplied by, so that attention over a long document
    stays as sharp as over a short one.

    :param positions: (batch, seq) or (seq,), integers.
    :returns: (..., seq, 1, 1), float32.
    """
    stretch = ((positions + 1) // floor_scale).float().log1p()
    return (1.0 + attn_scale * stretch)[..., None, None]
