"""Llama 3 (Grattafiori et al., 2024), with the parameter names and rotary layout of Meta's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import nn

from hekaton.config import AtResume
from hekaton.errors import ConfigError
from hekaton_blocks import Attention, Documents, FeedForward, RopeScaling, pack_documents, rotary_table

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
    n_layers: PositiveInt
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
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each on a normed input and added to the residual stream."""

    def __init__(self, config: Llama3Config) -> None:
        super().__init__()
        self.attention = Attention(config.dim, config.n_heads, config.n_kv_heads, config.head_dim)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: (batch, seq, dim)"""
        x = x + self.attention(self.attention_norm(x), rotary, documents)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama3(nn.Module):
    """The decoder. A pipeline stage is this same class with the ends that it lacks set to ``None``."""

    def __init__(self, config: Llama3Config) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleDict({str(i): TransformerBlock(config) for i in range(config.n_layers)})
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token.

        :param tokens: (batch, seq) ids; on later pipeline stages the hidden states, (batch, seq, dim).
        :param positions: (batch, seq), where each token stands in its document; counted from the start of
            the row when ``None``.
        :param documents: (batch, seq), which document each token is of; each row is one when ``None``.
        :returns: (batch, seq, vocab_size); hidden states on earlier pipeline stages.
        """
        config = self.config
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        rotary = rotary_table(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        packed = pack_documents(documents)
        h = tokens if self.tok_embeddings is None else self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h, rotary, packed)
        h = h if self.norm is None else self.norm(h)
        return h if self.output is None else self.output(h)
