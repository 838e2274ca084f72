"""Multi-token prediction: a decoder with a layer for the token after the next (DeepSeek V3, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hekaton.spec import Refusal, RunFacts
from hekaton_blocks.decoder import Decoder, DecoderConfig, TransformerBlock
from hekaton_blocks.pattern import CAUSAL, AttentionPattern


class MultiTokenLayer(TransformerBlock):
    """Predicts the token after the next from the hidden state of a token and the next token.

    As published, the hidden state is that after the last norm, and what is joined begins with the token.
    """

    def __init__(self, config: DecoderConfig, attention: nn.Module, **feed_forward: nn.Module) -> None:
        """For the parameters see :class:`TransformerBlock`."""
        super().__init__(config, attention, **feed_forward)
        self.enorm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.hnorm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.eh_proj = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
        """:param x: (batch, seq, dim); :param context: first the embedded next tokens; :returns: as ``x``"""
        embedded, *others = context
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(x)), dim=-1))
        return self.norm(super().forward(joined, *others))


class MultiTokenDecoder(Decoder):
    """A decoder that has, where it is configured, a layer for a second token, which shares the embedding and
    the output; for the objective ``multi_token``.

    :param block: as a :class:`Decoder` has it; called with :class:`MultiTokenLayer` as ``layer``, it makes
        that layer, whose number follows those of the others.
    """

    def __init__(
        self,
        config: Any,
        block: Callable[..., nn.Module],
        *,
        patterns: Sequence[AttentionPattern] = (CAUSAL,),
    ) -> None:
        super().__init__(config, block, patterns=patterns)
        further = range(config.n_layers, config.n_layers + config.n_mtp_layers)
        self.mtp_layers = nn.ModuleDict(
            {str(number): block(config, number, layer=MultiTokenLayer) for number in further}
        )

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        next_tokens: torch.Tensor | None = None,
    ) -> Any:
        """Logits of the next token, as every :class:`Decoder` gives them.

        :param next_tokens: (batch, seq) ids of the tokens that follow; those of a model with ``mtp_layers``.
        :returns: (batch, seq, vocab_size). With ``next_tokens`` two of them, the second for the tokens after
            the next.
        """
        if next_tokens is None:
            return super().forward(tokens, positions, documents)
        context = self.context(tokens, positions, documents)
        h = self.hidden(tokens, context)
        (layer,) = self.mtp_layers.values()
        return self.output(h), self.output(layer(h, self.tok_embeddings(next_tokens), *context))


MULTI_TOKEN_ENDS = {
    "norm": "local_norm",
    "mtp_layers.*.ffn_norm": "part_norm",
    "mtp_layers.*.{enorm,hnorm,norm}": "local_norm",
    "mtp_layers.*.eh_proj": "local_linear",
    "output": "gathering_vocab_output",
}
"""Styles of what follows the layers: one for a second token, with experts, stands between the last norm and
the output, on parts of the sequence."""


def second_token_has_both_ends(config: Any, facts: RunFacts) -> Iterator[Refusal]:
    """For ``TrainSpec.check``."""
    if config.n_mtp_layers and facts.pp > 1:
        yield Refusal(
            "predicts a second token with the embedding, which the first stage of a pipeline has, and the "
            "output, which the last has",
            ["n_mtp_layers", "parallelism.pipeline_parallel_degree"],
            hint="choose n_mtp_layers = 0 or pipeline_parallel_degree = 1",
        )
