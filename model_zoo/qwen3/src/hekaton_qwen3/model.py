"""Qwen 3 (Yang et al., 2025), with torchtitan's parameter names and transformers' rotary layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from hekaton.config import AtResume
from hekaton_blocks import (
    Attention,
    Decoder,
    LayerCount,
    MoEConfig,
    TransformerBlock,
    check_heads,
    feed_forward_of,
    rotary_table,
)

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model


@dataclass(frozen=True, kw_only=True)
class Qwen3Config:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_kv_heads: key/value heads, each shared by ``n_heads / n_kv_heads`` query heads.
    :param head_dim: channels of a head; ``n_heads * head_dim`` need not be ``dim``.
    :param hidden_dim: width inside the feed-forward layer; without effect where there are experts.
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    :param tie_embeddings: the output projection is the embedding (0.6B, 1.7B, 4B).
    :param moe: the experts that take the feed-forward layer's place, in every layer; ``None``: dense.
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_heads: Annotated[PositiveInt, Mathematics]
    n_kv_heads: Annotated[PositiveInt, Mathematics]
    hidden_dim: PositiveInt
    head_dim: Annotated[PositiveInt, Mathematics] = 128
    vocab_size: PositiveInt = 151_936
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-6
    rope_theta: Annotated[float, Field(ge=1, le=1e30), Mathematics] = 1_000_000.0
    tie_embeddings: Annotated[bool, Mathematics] = False
    moe: Annotated[MoEConfig | None, Mathematics] = None

    def __post_init__(self) -> None:
        check_heads(self)


def block(config: Qwen3Config, number: int) -> TransformerBlock:
    """A layer: queries and keys are normed; all layers are dense, or all have experts."""
    attention = Attention(
        config.dim,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        qk_norm_eps=config.norm_eps,
        rotary_halves=True,
    )
    return TransformerBlock(config, attention, **feed_forward_of(config.dim, config.hidden_dim, config.moe))


class Qwen3(Decoder):
    """The decoder."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config, block, tie_embeddings=config.tie_embeddings)

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines, as ``rotary_table`` gives them."""
        return (rotary_table(positions, self.config.head_dim, self.config.rope_theta),)
