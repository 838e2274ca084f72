"""Llama 3 (Grattafiori et al., 2024), with the parameter names and rotary layout of Meta's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton_blocks import (
    Attention,
    Decoder,
    FeedForward,
    LayerCount,
    RopeScaling,
    TransformerBlock,
    check_heads,
    rotary_table,
)

Mathematics = AtResume("refusal")  # tensors of the same shapes, and another model


@dataclass(frozen=True, kw_only=True)
class Llama3Config:
    """What the flavors differ in.

    :param dim: width of the residual stream.
    :param n_kv_heads: key/value heads, each shared by ``n_heads / n_kv_heads`` query heads.
    :param hidden_dim: width inside the feed-forward layer.
    :param vocab_size: rows of the embedding; at least the tokenizer's.
    :param tie_embeddings: the output projection is the embedding (Llama 3.2's 1B and 3B).
    """

    dim: PositiveInt
    n_layers: LayerCount
    n_heads: Annotated[PositiveInt, Mathematics]
    n_kv_heads: Annotated[PositiveInt, Mathematics]
    hidden_dim: PositiveInt
    vocab_size: PositiveInt = 128_256
    norm_eps: Annotated[float, Field(ge=1e-12, le=1), Mathematics] = 1e-5
    rope_theta: Annotated[float, Field(ge=1, le=1e30), Mathematics] = 500_000.0
    rope_scaling: Annotated[RopeScaling | None, Mathematics] = None
    tie_embeddings: Annotated[bool, Mathematics] = False

    def __post_init__(self) -> None:
        if self.dim % self.n_heads or self.head_dim % 2:
            raise ConfigError(
                f"dim = {self.dim} over n_heads = {self.n_heads} must be a whole and even number of "
                "channels, which rotary positions turn in pairs"
            )
        check_heads(self)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def block(config: Llama3Config, number: int) -> TransformerBlock:
    """A layer."""
    return TransformerBlock(
        config,
        Attention(config.dim, config.n_heads, config.n_kv_heads, config.head_dim),
        feed_forward=FeedForward(config.dim, config.hidden_dim),
    )


class Llama3(Decoder):
    """The decoder."""

    def __init__(self, config: Llama3Config) -> None:
        super().__init__(config, block, tie_embeddings=config.tie_embeddings)

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cosines and sines, as ``rotary_table`` gives them."""
        config = self.config
        return (rotary_table(positions, config.head_dim, config.rope_theta, config.rope_scaling),)
