"""Multi-head latent attention (DeepSeek-AI, 2024, "DeepSeek-V2", arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from hekaton_blocks.attention import DocumentAttention
from hekaton_blocks.documents import Documents
from hekaton_blocks.pattern import AttentionPattern
from hekaton_blocks.rope import apply_rotary

LATENT_EPS = 1e-6
"""Of the norms of latents, in every published model and in transformers, whatever ``rms_norm_eps`` says."""


class LatentHeads(Protocol):
    """What a configuration says of latent attention.

    ``q_lora_rank`` and ``kv_lora_rank`` are the channels of the latents that queries, and keys with values,
    are made from; queries are made at once where it is 0. Positions rotate ``qk_rope_head_dim`` channels of a
    query and key, which for keys all heads share, and leave ``qk_nope_head_dim``.
    """

    @property
    def dim(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def q_lora_rank(self) -> int: ...
    @property
    def kv_lora_rank(self) -> int: ...
    @property
    def qk_nope_head_dim(self) -> int: ...
    @property
    def qk_rope_head_dim(self) -> int: ...
    @property
    def v_head_dim(self) -> int: ...


class LatentAttention(nn.Module):
    """Queries, and keys with values, are made from latents of low rank. Positions rotate channels of their
    own, which for keys are made once for all heads.

    :param softmax_factor: on the scale ``(qk_nope_head_dim + qk_rope_head_dim) ** -0.5``; YaRN may have one.
    """

    def __init__(self, config: LatentHeads, *, softmax_factor: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        queries = config.n_heads * self.qk_head_dim
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
        self.inner = DocumentAttention(AttentionPattern(scale=self.qk_head_dim**-0.5 * softmax_factor))

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """:param x: (batch, seq, dim); :param rotary: from ``rotary_table``; :returns: (batch, seq, dim)"""
        config, rope = self.config, self.config.qk_rope_head_dim
        latent, shared = self.wkv_a(x).split((config.kv_lora_rank, rope), dim=-1)
        # The number of heads is read off the projections: under tensor parallel a rank has only some of them.
        q = self._queries(x).unflatten(-1, (-1, self.qk_head_dim))
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
