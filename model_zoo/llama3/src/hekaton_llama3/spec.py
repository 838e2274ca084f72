"""Llama 3's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping

from hekaton.init import Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    RopeScaling,
    decoder_flops_per_token,
    key_value_cache,
    multiplied,
    multiplied_parameters,
    tables,
)
from hekaton_llama3.model import Llama3, Llama3Config

# Shapes as published: Llama 3.1 (8B, 70B, 405B) and Llama 3.2 (1B, 3B).
flavors = {
    "debugmodel": Llama3Config(
        dim=256, n_layers=6, n_heads=8, n_kv_heads=4, hidden_dim=768, vocab_size=2_048
    ),
    "debugmodel_tied": Llama3Config(
        dim=256, n_layers=6, n_heads=8, n_kv_heads=4, hidden_dim=768, vocab_size=2_048, tie_embeddings=True
    ),
    "1B": Llama3Config(
        dim=2_048, n_layers=16, n_heads=32, n_kv_heads=8, hidden_dim=8_192,
        rope_scaling=RopeScaling(factor=32.0), tie_embeddings=True,
    ),
    "3B": Llama3Config(
        dim=3_072, n_layers=28, n_heads=24, n_kv_heads=8, hidden_dim=8_192,
        rope_scaling=RopeScaling(factor=32.0), tie_embeddings=True,
    ),
    "8B": Llama3Config(
        dim=4_096, n_layers=32, n_heads=32, n_kv_heads=8, hidden_dim=14_336,
        rope_scaling=RopeScaling(factor=8.0),
    ),
    "70B": Llama3Config(
        dim=8_192, n_layers=80, n_heads=64, n_kv_heads=8, hidden_dim=28_672,
        rope_scaling=RopeScaling(factor=8.0),
    ),
    "405B": Llama3Config(
        dim=16_384, n_layers=126, n_heads=128, n_kv_heads=8, hidden_dim=53_248,
        rope_scaling=RopeScaling(factor=8.0),
    ),
}  # fmt: skip


def plan(config: Llama3Config) -> ParallelPlan:
    """How the model is cut."""
    return tables.decoder_plan(tables.attention_styles() | tables.feed_forward_styles(config.n_layers))


def init(config: Llama3Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    of_layers = tables.attention_init() | tables.feed_forward_init()
    return tables.decoder_init(config.dim, of_layers, tie_embeddings=config.tie_embeddings)


def flops_per_token(config: Llama3Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    return decoder_flops_per_token(
        multiplied_parameters(Llama3, config),
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        head_dim=config.head_dim,
        seq_len=seq_len,
    )


train_spec = TrainSpec(
    name="llama3",
    model=Llama3,
    flavors=flavors,
    plan=plan,
    init=init,
    flops_per_unit=flops_per_token,
    multiplied=multiplied,
    cache=key_value_cache,
)
