"""Grouped-query attention that stays inside documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from hekaton_blocks.backends import BACKENDS, AttentionBackend
from hekaton_blocks.documents import Documents, PackedDocuments, takes_tiles
from hekaton_blocks.experts import local
from hekaton_blocks.pattern import CAUSAL, AttentionPattern
from hekaton_blocks.rope import apply_rotary
from hekaton_blocks.sinks import attend_with_sinks, attend_with_softcap

if TYPE_CHECKING:
    from hekaton_blocks.cache import KeyValueCache

SMALLEST_PIECE = 128
"""Queries of a window that are masked together, at least."""


class DocumentAttention(nn.Module):
    """Scaled dot-product attention among tokens of the same document, as a pattern describes it.

    Without parameters, and apart from the projections, so that strategies which split the sequence can take
    its place. Where a run names no backend, no more than a document, a chunk or a stretch of the window's
    size is masked at a time on a CPU; on CUDA FlexAttention skips what the pattern leaves out.
    """

    backends: Mapping[str, AttentionBackend] = BACKENDS
    """What a run can choose from, by name."""

    def __init__(self, pattern: AttentionPattern = CAUSAL) -> None:
        super().__init__()
        self.pattern = pattern
        self.backend: str | None = None
        """The name of what it chose; otherwise the usual one for what is computed."""
        self.cache: KeyValueCache | None = None
        """Keys and values so far, while a text is generated."""

    @property
    def chosen(self) -> AttentionBackend | None:
        """The backend that a run named."""
        return None if self.backend is None else self.backends[self.backend]

    @property
    def requires(self) -> tuple[str, ...]:
        """What a backend and a context-parallel strategy must support."""
        return self.pattern.requires

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: Documents = None,
        *,
        sinks: torch.Tensor | None = None,
        queries_at: torch.Tensor | None = None,
        keys_at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        :param q: (batch, n_heads, seq, head_dim)
        :param k: (batch, n_kv_heads, seq, head_dim); ``n_kv_heads`` divides ``n_heads``.
        :param v: (batch, n_kv_heads, seq, v_head_dim)
        :param documents: (batch, seq), which document each token is of, the tokens of one being neighbours,
            or what :func:`~hekaton_blocks.pack_documents` made of that; ``None`` for one document per row.
        :param sinks: (n_heads,), where the pattern has them.
        :param queries_at: the positions in the sequence that ``q`` holds, and ``keys_at`` those of ``k`` and
            ``v``, where they are not simply all of it in order.
        :returns: (batch, n_heads, seq, v_head_dim)
        """
        assert (sinks is not None) == self.pattern.sinks, "sinks are given where the pattern has them"
        width = v.shape[-1]
        if q.device.type == "cpu" and width < q.shape[-1]:
            # The CPU's flash kernel takes heads of one size; without it all scores would be in memory.
            padded = F.pad(v, (0, q.shape[-1] - width))
            return self._attend(q, k, padded, documents, sinks, queries_at, keys_at)[..., :width]
        return self._attend(q, k, v, documents, sinks, queries_at, keys_at)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: Documents,
        sinks: torch.Tensor | None,
        queries_at: torch.Tensor | None,
        keys_at: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.cache is not None:
            k, v, mask = self.cache.extend(self, k, v)
            return self._kernel(q, k, v, sinks, mask)
        pattern = self.pattern
        ids = documents.ids if isinstance(documents, PackedDocuments) else documents
        if queries_at is not None and keys_at is not None:
            everything = ids is None and not pattern.causal and not pattern.is_local
            mask = None if everything else pattern.mask(ids, queries_at, keys_at)
            return self._kernel(q, k, v, sinks, mask)
        backend = self.chosen or self.backends[self._usual(documents, q)]
        if backend.attend is not None:
            assert backend.prepare is not None
            if isinstance(documents, PackedDocuments):
                prepared = documents.prepared[pattern.mask_key]
            else:
                one = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int64, device=q.device)
                prepared = backend.prepare(pattern, one if ids is None else ids)
            return backend.attend(q, k, v, pattern, prepared, sinks)
        if ids is None and not pattern.is_local:
            return self._kernel(q, k, v, sinks)
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._region_by_region(q, k, v, ids, sinks)
        at = torch.arange(q.shape[2], device=q.device)
        return self._kernel(q, k, v, sinks, pattern.mask(ids, at, at))

    def _usual(self, documents: Documents, q: torch.Tensor) -> str:
        """The backend where a run names none."""
        pattern = self.pattern
        plain = documents is None and not pattern.is_local and pattern.softcap is None
        if plain or q.dtype == torch.float64:
            return "sdpa"
        return "flex" if isinstance(documents, PackedDocuments) or takes_tiles(q.device) else "sdpa"

    def _region_by_region(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        ids: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Documents and chunks on their own: the CPU kernel skips all others, and the masked half."""
        if ids is None:  # all rows are cut alike
            seq = q.shape[2]
            chunk = self.pattern.chunk or seq
            lengths = [min(chunk, seq - start) for start in range(0, seq, chunk)]
            return self._regions_of(q, k, v, lengths, sinks)
        regions = self.pattern.regions(ids)
        assert regions is not None
        rows = []
        for row, numbers in enumerate(regions):
            lengths = torch.unique_consecutive(numbers, return_counts=True)[1].tolist()
            rows.append(self._regions_of(*(x[row : row + 1] for x in (q, k, v)), lengths, sinks))
        return torch.cat(rows)

    def _regions_of(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lengths: list[int],
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """:param lengths: of the regions, those of every row."""
        pieces = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([self._window_by_window(*piece, sinks) for piece in pieces], dim=2)

    def _window_by_window(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """One region: as many queries at a time as the window has tokens, with the keys that they see."""
        window, seq = self.pattern.window, q.shape[2]
        if window is None or window >= seq:
            return self._kernel(q, k, v, sinks)
        pieces = []
        size = max(window, SMALLEST_PIECE)
        for start in range(0, seq, size):
            end, first = min(start + size, seq), max(0, start - window + 1)
            at = torch.arange(first, end)
            mask = self.pattern.seen(at[start - first :], at)
            seen = (x[:, :, first:end] for x in (k, v))
            pieces.append(self._kernel(q[:, :, start:end], *seen, sinks, mask))
        return torch.cat(pieces, dim=2)

    def _kernel(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """:param mask: bool, (n, m) or (batch, 1, n, m); ``None`` where the whole region is seen, causally or
        not."""
        causal, scale = self.pattern.causal and mask is None, self.pattern.scale
        if (softcap := self.pattern.softcap) is not None:
            return attend_with_softcap(q, k, v, sinks, mask=mask, causal=causal, scale=scale, softcap=softcap)
        if sinks is not None:
            return attend_with_sinks(q, k, v, sinks, mask=mask, causal=causal, scale=scale)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al., 2023) and rotary positions.

    :param qk_norm_eps: norm the channels of each query and key before they are rotated, by an RMSNorm with
        this epsilon (Henry et al., 2020; Dehghani et al., 2023); ``None`` for no norm.
    :param rotary_halves: how channels are paired; see :func:`~hekaton_blocks.apply_rotary`.
    :param bias: whether the four projections have one.
    :param pattern: what is attended to; with ``sinks`` there is a parameter of that name, (n_heads,).
    """

    sinks: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        qk_norm_eps: float | None = None,
        rotary_halves: bool = False,
        bias: bool = False,
        pattern: AttentionPattern = CAUSAL,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.rotary_halves = rotary_halves
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=bias)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=bias)
        self.q_norm = None if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.register_parameter("sinks", nn.Parameter(torch.empty(n_heads)) if pattern.sinks else None)
        self.inner = DocumentAttention(pattern)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """:param x: (batch, seq, dim); :param rotary: from ``rotary_table``; :returns: (batch, seq, dim)"""
        # The number of heads is read off the projection: under tensor parallel a rank has only some of them.
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = (apply_rotary(heads, rotary, halves=self.rotary_halves) for heads in (q, k))
        sinks = {} if self.sinks is None else {"sinks": local(self.sinks)}
        out = self.inner(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), documents, **sinks)
        return self.wo(out.transpose(1, 2).flatten(-2))
