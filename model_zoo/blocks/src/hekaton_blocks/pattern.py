"""What a layer attends to, in one description that every backend and context-parallel strategy reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from hekaton.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AttentionPattern:
    """Which keys a query sees, always of its own document, and how its scores become weights.

    :param causal: none that come after it.
    :param window: only the last ``window`` tokens, itself among them: ``query - key < window`` (Mistral 7B,
        Jiang et al., 2023, and ``sliding_window`` in transformers).
    :param chunk: only those of its chunk: documents are cut into chunks of so many tokens, counted from the
        document's first token (Llama 4). So a document has in a packed row what it has alone, as in
        transformers (``remap_positions_for_packed_sequence`` in ``masking_utils.py``).
    :param scale: of the scores before the softmax; ``head_dim ** -0.5`` when ``None``.
    :param softcap: scores, scaled, are bent to between ``-softcap`` and ``softcap``: ``softcap * tanh(score /
        softcap)``, before any is masked (Gemma 2, arXiv 2408.00118, section 2).
    :param sinks: each head has a logit of its own that takes part in the softmax and has no value (gpt-oss;
        Xiao et al., 2023, arXiv 2309.17453); attention is given them beside queries, keys and values.
    """

    causal: bool = True
    window: PositiveInt | None = None
    chunk: PositiveInt | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    softcap: Annotated[float, Field(gt=0)] | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and not self.causal:
            raise ConfigError(
                f"window = {self.window} with causal = False: a window is of tokens that came before"
            )

    @property
    def requires(self) -> tuple[str, ...]:
        """What a backend or context-parallel strategy must support beyond causal attention in documents."""
        has = {
            "bidirectional": not self.causal,
            "window": self.window is not None,
            "chunks": self.chunk is not None,
            "sinks": self.sinks,
            "softcap": self.softcap is not None,
        }
        return tuple(name for name, wanted in has.items() if wanted)

    @property
    def mask_key(self) -> tuple[bool, int | None, int | None]:
        """Equal for patterns of which a query sees the same keys."""
        return self.causal, self.window, self.chunk

    @property
    def is_local(self) -> bool:
        """Whether a query may see less than its document up to itself."""
        return self.window is not None or self.chunk is not None

    def regions(self, ids: torch.Tensor | None) -> torch.Tensor | None:
        """The numbers of the stretches that tokens see each other within: documents, or chunks of them.

        :param ids: (batch, seq), which document each token is of, the tokens of one being neighbours.
        :returns: (batch, seq); ``None`` for ``None``.
        """
        if ids is None or self.chunk is None:
            return ids
        at = torch.arange(ids.shape[1], device=ids.device)
        begins = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0))
        start = torch.where(begins, at, 0).cummax(dim=-1).values
        return ((at - start) % self.chunk == 0).cumsum(dim=-1)

    def seen(self, queries_at: torch.Tensor, keys_at: torch.Tensor) -> torch.Tensor:
        """Which keys each query sees inside a region.

        :param queries_at: (n,), positions in the row, and ``keys_at`` (m,).
        :returns: bool, (n, m)
        """
        back = queries_at[:, None] - keys_at
        allowed = back >= 0 if self.causal else torch.ones_like(back, dtype=torch.bool)
        return allowed if self.window is None else allowed & (back < self.window)

    def mask(self, ids: torch.Tensor | None, queries_at: torch.Tensor, keys_at: torch.Tensor) -> torch.Tensor:
        """Which keys each query sees.

        :param ids: (batch, seq), which document each token of the whole row is of; ``None``: each row is one.
        :param queries_at: (n,), positions in the row, and ``keys_at`` (m,).
        :returns: bool, (n, m) without documents, else (batch, 1, n, m).
        """
        allowed = self.seen(queries_at, keys_at)
        regions = self.regions(ids)
        if regions is not None:
            return (allowed & (regions[:, queries_at, None] == regions[:, None, keys_at]))[:, None]
        if self.chunk is not None:
            allowed = allowed & (queries_at[:, None] // self.chunk == keys_at // self.chunk)
        return allowed


CAUSAL = AttentionPattern()
"""Causal attention inside documents."""
