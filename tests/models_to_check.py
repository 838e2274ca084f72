"""A small decoder in the style that most are written in, and what breaks it under one layout or another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hekaton.init import Constant, Normal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.spec import TrainSpec
from hekaton_blocks import DocumentAttention


@dataclass(frozen=True, kw_only=True)
class Config:
    """:param fault: what is wrong with the model, if anything."""

    fault: str = ""
    dim: int = 16
    n_heads: int = 2
    n_layers: int = 2
    vocab_size: int = 12


class OldAttention(nn.Module):
    """Knows of no part of a sequence."""

    def forward(self, q, k, v, documents=None):
        return DocumentAttention()(q, k, v, documents)


class HeedlessAttention(nn.Module):
    """Is told which part of the sequence it has, and attends as if it were the first."""

    def forward(self, q, k, v, documents=None, *, queries_at=None, keys_at=None):
        if queries_at is None:
            return DocumentAttention()(q, k, v, documents)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.RMSNorm(config.dim)
        self.q, self.k, self.v, self.out = (nn.Linear(config.dim, config.dim, bias=False) for _ in range(4))
        kinds = {"old attention": OldAttention, "heedless attention": HeedlessAttention}
        self.inner = kinds.get(config.fault, DocumentAttention)()

    def forward(self, x, documents):
        heads = self.config.n_heads if self.config.fault == "counts its heads" else -1
        size = self.config.dim // self.config.n_heads
        x = x.to(self.q.weight.dtype)
        normed = self.norm(x)
        q, k, v = (w(normed).unflatten(-1, (heads, size)).transpose(1, 2) for w in (self.q, self.k, self.v))
        extra = {"causal": True} if self.config.fault == "calls attention its own way" else {}
        attended = self.inner(q, k, v, documents, **extra)
        out = x + self.out(attended.transpose(1, 2).flatten(2))
        return out.double() if self.config.fault == "changes the type" else out


class CausalAttention(DocumentAttention):
    """Takes an argument that context parallel does not know."""

    def forward(self, q, k, v, documents=None, *, causal=True, queries_at=None, keys_at=None):
        return super().forward(q, k, v, documents, queries_at=queries_at, keys_at=keys_at)


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.fault == "calls attention its own way":
            for layer in self.layers:
                layer.inner = CausalAttention()

    def forward(self, tokens, positions, documents):
        fault = self.config.fault
        x = tokens if self.embedding is None and fault != "needs its ends" else self.embedding(tokens)
        x = self.dropout(x)
        if fault == "reaches into a block":
            x = x + F.linear(x, self.layers[0].q.weight)
        for number, layer in enumerate(self.layers):
            x = layer(x, documents)
            if fault == "numbers its layers":
                x = x + number
        if self.norm is not None:
            x = self.norm(x.to(self.norm.weight.dtype))
        return x if self.output is None else self.output(x)


def plan(config: Config) -> ParallelPlan:
    """Of a broken model the plan claims only the layout that the fault is about."""
    about = {
        "": {"tensor", "context", "stages"},
        "has one head": {"tensor"},
        "counts its heads": {"tensor"},
        "old attention": {"context"},
        "heedless attention": {"context"},
        "calls attention its own way": {"context"},
        "needs its ends": {"stages"},
        "numbers its layers": {"stages"},
        "changes the type": {"stages"},
        "reaches into a block": set(),
    }[config.fault]
    tensor = {
        "embedding": "vocab_embedding",
        "layers.*.norm": "sequence_norm",
        "layers.*.{q,k,v}": "colwise",
        "layers.*.out": "rowwise",
        "norm": "sequence_norm",
        "output": "vocab_output",
    }
    return ParallelPlan(
        block="layers.*",
        tensor=tensor if "tensor" in about else {},
        context=["layers.*.inner"] if "context" in about else (),
        stages=Stages(first=["embedding"], last=["norm", "output"]) if "stages" in about else None,
    )


def init(config: Config):
    return {"**.norm.weight": Constant(1.0), "layers.*.{q,k,v,out}.weight": Normal(0.3)} | {
        "{embedding,output}.weight": Normal(0.5)
    }


spec = TrainSpec(
    name="decoder",
    model=Decoder,
    flavors={"one head": Config(fault="has one head", n_heads=1)}
    | {
        fault or "sound": Config(fault=fault)
        for fault in (
            "",
            "counts its heads",
            "old attention",
            "heedless attention",
            "calls attention its own way",
            "needs its ends",
            "numbers its layers",
            "changes the type",
            "reaches into a block",
        )
    },
    plan=plan,
    init=init,
)
