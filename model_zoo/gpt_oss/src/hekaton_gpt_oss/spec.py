"""gpt-oss's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.init import Constant, Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    YarnScaling,
    decoder_flops_per_token,
    hooks_of_experts,
    key_value_cache,
    multiplied,
    multiplied_parameters,
    tables,
)
from hekaton_gpt_oss.model import GptOss, GptOssConfig

# Shapes of the published models (model card, arXiv 2508.10925, section 2, and their config.json).
flavors = {
    "debugmodel": GptOssConfig(
        dim=256, n_layers=4, n_heads=8, n_kv_heads=4, head_dim=32, window=64, vocab_size=2_048,
        rope_scaling=YarnScaling(factor=32.0, original_context=128, truncate=False),
        moe=MoEConfig(n_experts=8, hidden_dim=256, top_k=4, renormalise=True, batch_balance=1e-3),
    ),
    "20b": GptOssConfig(
        dim=2_880, n_layers=24, n_heads=64, n_kv_heads=8,
        moe=MoEConfig(n_experts=32, hidden_dim=2_880, top_k=4, renormalise=True, batch_balance=1e-3),
    ),
    "120b": GptOssConfig(
        dim=2_880, n_layers=36, n_heads=64, n_kv_heads=8,
        moe=MoEConfig(n_experts=128, hidden_dim=2_880, top_k=4, renormalise=True, batch_balance=1e-3),
    ),
}  # fmt: skip


def plan(config: GptOssConfig) -> ParallelPlan:
    """How the model is cut."""
    return tables.decoder_plan(
        tables.attention_styles()
        | {"layers.*.attention": "head_parameters"}
        | tables.feed_forward_styles(config.n_layers, sparse=range(config.n_layers), experts=config.moe),
        experts={"layers.*.moe": "biased_experts"},
    )


def init(config: GptOssConfig) -> Mapping[str, Initializer]:
    """How the model starts. A sink of 0 weighs as much as one key without a score."""
    of_layers = tables.attention_init() | {
        "**.attention.sinks": Constant(0.0),
        "**.{wq,wk,wv,wo,gate}.bias": Constant(0.0),
        "**.router.gate.weight": tables.SMALL,
        "**.experts.mlp1_weight": tables.SMALL,
        "**.experts.mlp2_weight": tables.DEEP,
        "**.experts.{mlp1_bias,mlp2_bias}": Constant(0.0),
    }
    return tables.decoder_init(config.dim, of_layers)


def flops_per_token(config: GptOssConfig, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    local = (config.n_layers + 1) // 2
    heads: dict[str, Any] = {"n_heads": config.n_heads, "head_dim": config.head_dim, "seq_len": seq_len}
    multiplied = multiplied_parameters(GptOss, config)
    return decoder_flops_per_token(multiplied, n_layers=config.n_layers - local, **heads) + (
        decoder_flops_per_token(0, n_layers=local, window=config.window, **heads)
    )


train_spec = TrainSpec(
    name="gpt_oss",
    model=GptOss,
    flavors=flavors,
    plan=plan,
    init=init,
    flops_per_unit=flops_per_token,
    multiplied=multiplied,
    cache=key_value_cache,
    **hooks_of_experts(lambda config: config.moe),
)
