"""Causal grouped-query attention that stays inside documents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hekaton_blocks.documents import Documents, PackedDocuments, flex_attention, pack_documents
from hekaton_blocks.rope import apply_rotary


class DocumentAttention(nn.Module):
    """Scaled dot-product attention, causal, and only among tokens of the same document.

    Without parameters, and apart from the projections, so that strategies which split the sequence can take
    its place.

    :param scale: of the scores before the softmax; ``head_dim ** -0.5`` when ``None``.
    """

    def __init__(self, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: Documents = None,
        *,
        queries_at: torch.Tensor | None = None,
        keys_at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        :param q: (batch, n_heads, seq, head_dim)
        :param k: (batch, n_kv_heads, seq, head_dim); ``n_kv_heads`` divides ``n_heads``.
        :param v: (batch, n_kv_heads, seq, v_head_dim)
        :param documents: (batch, seq), which document each token is of, the tokens of one being neighbours,
            or what :func:`~hekaton_blocks.pack_documents` made of that; ``None`` for one document per row.
        :param queries_at: the positions in the sequence that ``q`` holds, and ``keys_at`` those of ``k`` and
            ``v``, where they are not simply all of it in order.
        :returns: (batch, n_heads, seq, v_head_dim)
        """
        width = v.shape[-1]
        if q.device.type == "cpu" and width < q.shape[-1]:
            # The CPU's flash kernel takes heads of one size; without it all scores would be in memory.
            padded = F.pad(v, (0, q.shape[-1] - width))
            return self._attend(q, k, padded, documents, queries_at, keys_at)[..., :width]
        return self._attend(q, k, v, documents, queries_at, keys_at)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: Documents,
        queries_at: torch.Tensor | None,
        keys_at: torch.Tensor | None,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"scale": self.scale, "enable_gqa": q.shape[1] != k.shape[1]}
        if queries_at is None and keys_at is None and isinstance(documents, torch.Tensor):
            documents = pack_documents(documents)
        ids = documents.ids if isinstance(documents, PackedDocuments) else documents
        if queries_at is not None and keys_at is not None:
            mask = queries_at[:, None] >= keys_at
            if ids is not None:
                mask = (mask & (ids[:, queries_at, None] == ids[:, None, keys_at]))[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        if ids is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        if isinstance(documents, PackedDocuments) and q.dtype != torch.float64:
            return flex_attention(q, k, v, documents.tiles, **options)
        if q.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._each_document(q, k, v, ids, options)
        same = ids[:, None, :, None] == ids[:, None, None, :]
        mask = same & torch.ones_like(same[:1]).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)

    def _each_document(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Document by document: the CPU kernel skips the masked half, and all of the other documents."""
        rows = []
        for row, ids in enumerate(documents):
            lengths = torch.unique_consecutive(ids, return_counts=True)[1].tolist()
            pieces = [
                F.scaled_dot_product_attention(*piece, is_causal=True, **options)
                for piece in zip(*(x[row : row + 1].split(lengths, dim=2) for x in (q, k, v)), strict=True)
            ]
            rows.append(torch.cat(pieces, dim=2))
        return torch.cat(rows)


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al., 2023) and rotary positions.

    :param qk_norm_eps: norm the channels of each query and key before they are rotated, by an RMSNorm with
        this epsilon (Henry et al., 2020; Dehghani et al., 2023); ``None`` for no norm.
    :param rotary_halves: how channels are paired; see :func:`~hekaton_blocks.apply_rotary`.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        qk_norm_eps: float | None = None,
        rotary_halves: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.rotary_halves = rotary_halves
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=False)
        self.q_norm = None if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = None if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.inner = DocumentAttention()

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """:param x: (batch, seq, dim); :param rotary: from ``rotary_table``; :returns: (batch, seq, dim)"""
        # The number of heads is read off the projection: under tensor parallel a rank has only some of them.
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        q, k = (apply_rotary(heads, rotary, halves=self.rotary_halves) for heads in (q, k))
        out = self.inner(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), documents)
        return self.wo(out.transpose(1, 2).flatten(-2))
