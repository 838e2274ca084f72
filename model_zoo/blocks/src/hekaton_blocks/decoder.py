"""The decoder that the models of the zoo have in common, and the layer that it is a stack of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hekaton_blocks.attention import DocumentAttention
from hekaton_blocks.documents import pack_documents
from hekaton_blocks.pattern import CAUSAL, AttentionPattern


class DecoderConfig(Protocol):
    """What a decoder reads of its model's configuration."""

    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer or experts, each on a normed input and added to the residual stream
    (pre-norm, Xiong et al., 2020).

    :param attention: called as ``attention(x, *context)``, with what :class:`Decoder` gives its layers.
    :param feed_forward: in a dense layer; ``moe`` in one with experts.
    """

    def __init__(
        self,
        config: DecoderConfig,
        attention: nn.Module,
        *,
        feed_forward: nn.Module | None = None,
        moe: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert (feed_forward is None) != (moe is None), "a layer is dense or has experts"
        self.attention = attention
        self.feed_forward = feed_forward
        self.moe = moe
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: (batch, seq, dim)"""
        x = x + self.attention(self.attention_norm(x), *context)
        feed_forward = self.moe if self.feed_forward is None else self.feed_forward
        assert feed_forward is not None
        return x + feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    """Embedding, layers, last norm and output. A pipeline stage is this same class with the ends that it
    lacks set to ``None``.

    :param block: ``block(config, number)`` is a layer, called as ``layer(x, *context)``: hidden states, what
        :meth:`of_positions` gives, and the documents, prepared by :func:`~hekaton_blocks.pack_documents`.
    :param patterns: what the layers attend to.
    :param tie_embeddings: the output projection is the embedding.
    """

    def __init__(
        self,
        config: DecoderConfig,
        block: Callable[[Any, int], nn.Module],
        *,
        patterns: Sequence[AttentionPattern] = (CAUSAL,),
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.patterns = patterns
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleDict({str(number): block(config, number) for number in range(config.n_layers)})
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def of_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What every layer needs to know of positions, computed once: a rotary table, for example.

        :param positions: (batch, seq) or (seq,), integers.
        """
        raise NotImplementedError

    def context(
        self, tokens: torch.Tensor, positions: torch.Tensor | None, documents: torch.Tensor | None
    ) -> tuple[Any, ...]:
        """What layers are given beside hidden states; for the parameters see :meth:`forward`."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        inner = next((module for module in self.modules() if isinstance(module, DocumentAttention)), None)
        prepared = pack_documents(documents, self.patterns, backend=None if inner is None else inner.chosen)
        return *self.of_positions(positions), prepared

    def hidden(self, tokens: torch.Tensor, context: Sequence[Any]) -> torch.Tensor:
        """The hidden states that the output is computed from: (batch, seq, dim)."""
        h: torch.Tensor = tokens if self.tok_embeddings is None else self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h, *context)
        return h if self.norm is None else self.norm(h)

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
        h = self.hidden(tokens, self.context(tokens, positions, documents))
        return h if self.output is None else self.output(h)
