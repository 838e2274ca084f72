"""The model: a decoder with rotary positions and a gated feed-forward layer, and the tables of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from hekaton.init import Constant, DepthScaled, Initializer, Normal, TruncatedNormal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.scaffold.templates.settings import DecoderSection
from hekaton.spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What the flavors differ in."""

    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    vocab_size: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % (2 * self.n_heads):
            raise ValueError(f"dim = {self.dim} is not a multiple of twice n_heads = {self.n_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class InnerAttention(nn.Module):
    """Where tokens look at each other. Context parallel calls it with some queries and all keys."""

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: torch.Tensor | None = None,
        *,
        queries_at: torch.Tensor | None = None,
        keys_at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal attention inside of documents.

        :param q: (batch, heads, seq, head_dim), and so are ``k`` and ``v``.
        :param documents: (batch, seq of the whole row), which document each token is of.
        :param queries_at: (seq of ``q``,), the places in the row that ``q`` holds; ``keys_at`` likewise.
        """
        queries_at = torch.arange(q.shape[2], device=q.device) if queries_at is None else queries_at
        keys_at = torch.arange(k.shape[2], device=k.device) if keys_at is None else keys_at
        seen = queries_at[:, None] >= keys_at[None, :]
        if documents is not None:
            same = documents[:, queries_at, None] == documents[:, None, keys_at]
            seen = (seen & same)[:, None]  # (batch, 1, queries, keys)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, config.dim, bias=False)
        self.wv = nn.Linear(config.dim, config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.inner = InnerAttention()

    def forward(
        self, x: torch.Tensor, rotation: torch.Tensor, documents: torch.Tensor | None
    ) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: the same."""
        # Under tensor parallel a rank has some of the heads: their number follows from what wq returns.
        heads = (wide(x).unflatten(-1, (-1, self.head_dim)) for wide in (self.wq, self.wk, self.wv))
        q, k, v = (part.transpose(1, 2) for part in heads)  # (batch, heads, seq, head_dim)
        attended = self.inner(rotated(q, rotation), rotated(k, rotation), v, documents)
        out: torch.Tensor = self.wo(attended.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (batch, seq, dim); :returns: the same."""
        out: torch.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Block(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: torch.Tensor, rotation: torch.Tensor, documents: torch.Tensor | None
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, documents)
        out: torch.Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Decoder(nn.Module):
    """The whole model, or one stage of a pipeline, where the ends that it does not have are ``None``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings: nn.Embedding | None = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm: nn.RMSNorm | None = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output: nn.Linear | None = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next tokens, (batch, seq, vocab).

        :param tokens: (batch, seq); on later stages hidden states, (batch, seq, dim).
        :param positions: (batch, seq), from 0 in each document; ``None`` where a row is one text.
        :param documents: (batch, seq of the whole row), which document each token is of.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        rotation = rotations(positions, self.config)
        x: torch.Tensor = tokens if self.tok_embeddings is None else self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, rotation, documents)
        x = x if self.norm is None else self.norm(x)
        return x if self.output is None else self.output(x)


def rotations(positions: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """The angles of rotary positions (Su et al., 2021), by halves as transformers has them.

    :param positions: (batch, seq); :returns: (batch, 1, seq, head_dim / 2), in float32.
    """
    channels = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-channels / config.head_dim)
    return (positions[..., None].float() * frequencies)[:, None]


def rotated(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """:param x: (batch, heads, seq, head_dim); :returns: the same, in its type."""
    cos, sin = rotation.cos(), rotation.sin()
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).type_as(x)


def plan(config: DecoderConfig) -> ParallelPlan:
    """How the model is cut: what repeats, what tensor parallel does to each layer, where tokens see each
    other, and what only one end of a pipeline has."""
    return ParallelPlan(
        block="layers.*",
        tensor={
            "tok_embeddings": "vocab_embedding",
            "layers.*.{attention_norm,ffn_norm}": "sequence_norm",
            "layers.*.attention.{wq,wk,wv}": "colwise",
            "layers.*.attention.wo": "rowwise",
            "layers.*.feed_forward.{w1,w3}": "colwise",
            "layers.*.feed_forward.w2": "rowwise",
            "norm": "sequence_norm",
            "output": "vocab_output",
        },
        context=["layers.*.attention.inner"],
        stages=Stages(first=["tok_embeddings"], layers="layers", last=["norm", "output"]),
    )


def init(config: DecoderConfig) -> Mapping[str, Initializer]:
    """How each parameter starts."""
    return {
        "tok_embeddings.weight": Normal(1.0),
        "layers.*.{attention_norm,ffn_norm}.weight": Constant(1.0),
        "layers.*.attention.{wq,wk,wv}.weight": TruncatedNormal(0.02),
        "layers.*.feed_forward.{w1,w3}.weight": TruncatedNormal(0.02),
        "layers.*.attention.wo.weight": DepthScaled(0.02),
        "layers.*.feed_forward.w2.weight": DepthScaled(0.02),
        "norm.weight": Constant(1.0),
        "output.weight": Normal(0.02),
    }


def configure(config: DecoderConfig, section: DecoderSection) -> DecoderConfig:
    """The flavor, with what the run's section says."""
    if section.hidden_factor is None:
        return config
    return replace(config, hidden_dim=section.hidden_factor * config.dim)


def flops_per_token(config: DecoderConfig, seq_len: int) -> float:
    """Forward and backward: 6 for each parameter of a product, and 12 for each pair of channel and key."""
    layer = 4 * config.dim**2 + 3 * config.dim * config.hidden_dim
    products = config.n_layers * layer + config.dim * config.vocab_size
    return 6.0 * products + 12.0 * config.n_layers * config.dim * seq_len


train_spec = TrainSpec(
    name="template_model",
    model=Decoder,
    flavors={
        "tiny": DecoderConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=192, vocab_size=320),
        "small": DecoderConfig(dim=512, n_layers=8, n_heads=8, hidden_dim=1536, vocab_size=32_768),
    },
    plan=plan,
    init=init,
    configure=configure,
    flops_per_unit=flops_per_token,
)
