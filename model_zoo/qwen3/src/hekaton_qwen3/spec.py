"""Qwen 3's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping

from hekaton.init import Constant, Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    decoder_flops_per_token,
    hooks_of_experts,
    key_value_cache,
    multiplied,
    multiplied_parameters,
    tables,
)
from hekaton_qwen3.model import Qwen3, Qwen3Config

# Shapes of the published models (Qwen 3 technical report, tables 1 and 2, and their config.json).
EXPERTS = {"n_experts": 128, "top_k": 8, "renormalise": True, "batch_balance": 1e-3}
flavors = {
    "debugmodel": Qwen3Config(
        dim=256, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=64, hidden_dim=768, vocab_size=2_048,
        tie_embeddings=True,
    ),
    "0.6B": Qwen3Config(
        dim=1_024, n_layers=28, n_heads=16, n_kv_heads=8, hidden_dim=3_072, tie_embeddings=True
    ),
    "1.7B": Qwen3Config(
        dim=2_048, n_layers=28, n_heads=16, n_kv_heads=8, hidden_dim=6_144, tie_embeddings=True
    ),
    "4B": Qwen3Config(
        dim=2_560, n_layers=36, n_heads=32, n_kv_heads=8, hidden_dim=9_728, tie_embeddings=True
    ),
    "8B": Qwen3Config(dim=4_096, n_layers=36, n_heads=32, n_kv_heads=8, hidden_dim=12_288),
    "14B": Qwen3Config(dim=5_120, n_layers=40, n_heads=40, n_kv_heads=8, hidden_dim=17_408),
    "32B": Qwen3Config(dim=5_120, n_layers=64, n_heads=64, n_kv_heads=8, hidden_dim=25_600),
    "debugmodel_moe": Qwen3Config(
        dim=256, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=64, hidden_dim=768, vocab_size=2_048,
        moe=MoEConfig(n_experts=16, top_k=4, hidden_dim=192, renormalise=True, batch_balance=1e-3),
    ),
    "30B-A3B": Qwen3Config(
        dim=2_048, n_layers=48, n_heads=32, n_kv_heads=4, hidden_dim=6_144,
        moe=MoEConfig(hidden_dim=768, **EXPERTS),
    ),
    "235B-A22B": Qwen3Config(
        dim=4_096, n_layers=94, n_heads=64, n_kv_heads=4, hidden_dim=12_288,
        moe=MoEConfig(hidden_dim=1_536, **EXPERTS),
    ),
}  # fmt: skip


def plan(config: Qwen3Config) -> ParallelPlan:
    """How the model is cut."""
    sparse = range(0 if config.moe is None else config.n_layers)
    return tables.decoder_plan(
        tables.attention_styles()
        | {"layers.*.attention.{q_norm,k_norm}": "head_norm"}
        | tables.feed_forward_styles(config.n_layers, sparse=sparse, experts=config.moe),
        experts={"layers.*.moe": "grouped_experts"} if sparse else {},
    )


def init(config: Qwen3Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    of_layers = tables.attention_init() | {"**.attention.{q_norm,k_norm}.weight": Constant(1.0)}
    of_layers |= tables.feed_forward_init(dense=config.moe is None, experts=config.moe, router=tables.SMALL)
    return tables.decoder_init(config.dim, of_layers, tie_embeddings=config.tie_embeddings)


def flops_per_token(config: Qwen3Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    return decoder_flops_per_token(
        multiplied_parameters(Qwen3, config),
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        head_dim=config.head_dim,
        seq_len=seq_len,
    )


train_spec = TrainSpec(
    name="qwen3",
    model=Qwen3,
    flavors=flavors,
    plan=plan,
    init=init,
    flops_per_unit=flops_per_token,
    multiplied=multiplied,
    cache=key_value_cache,
    **hooks_of_experts(lambda config: config.moe),
)
