"""DeepSeek V3's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.init import Initializer
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
from hekaton_blocks.multi_token import second_token_has_both_ends
from hekaton_deepseek_v3.model import DeepSeekV3, DeepSeekV3Config

V2_SCALING = YarnScaling(factor=40.0, mscale=0.707, mscale_all_dim=0.707)
V3_SCALING = YarnScaling(factor=40.0, mscale=1.0, mscale_all_dim=1.0)
V2_ROUTING: dict[str, Any] = {"group_score": "max", "sequence_balance": 1e-3}
V3_ROUTING: dict[str, Any] = {
    "score": "sigmoid", "renormalise": True, "group_score": "sum_of_top2", "bias_rate": 1e-3,
    "sequence_balance": 1e-4,
}  # fmt: skip
"""The weight of V2's balance loss is that of its config.json (``aux_loss_alpha``); of V3 that and the rate of
the bias are its report's (arXiv 2412.19437, section 4.2)."""

flavors = {
    # torchtitan's shapes, with V3's routing and balance.
    "debugmodel": DeepSeekV3Config(
        dim=256, n_layers=6, n_dense_layers=1, n_heads=16, inter_dim=1_024, vocab_size=2_048,
        rope_scaling=V3_SCALING,
        moe=MoEConfig(
            n_experts=8, top_k=3, hidden_dim=256, n_shared_experts=2, n_groups=4, n_limited_groups=2,
            **V3_ROUTING,
        ),
    ),
    "16B": DeepSeekV3Config(
        dim=2_048, n_layers=27, n_dense_layers=1, n_heads=16, inter_dim=10_944, rope_scaling=V2_SCALING,
        moe=MoEConfig(n_experts=64, top_k=6, hidden_dim=1_408, n_shared_experts=2, **V2_ROUTING),
    ),
    "236B": DeepSeekV3Config(
        dim=5_120, n_layers=60, n_dense_layers=1, n_heads=128, inter_dim=12_288, q_lora_rank=1_536,
        rope_scaling=V2_SCALING,
        moe=MoEConfig(
            n_experts=160, top_k=6, hidden_dim=1_536, n_shared_experts=2, route_scale=16.0, n_groups=8,
            n_limited_groups=3, **V2_ROUTING,
        ),
    ),
    "671B": DeepSeekV3Config(
        dim=7_168, n_layers=61, n_dense_layers=3, n_heads=128, inter_dim=18_432, q_lora_rank=1_536,
        vocab_size=129_280, rope_scaling=V3_SCALING,
        moe=MoEConfig(
            n_experts=256, top_k=8, hidden_dim=2_048, n_shared_experts=1, route_scale=2.5, n_groups=8,
            n_limited_groups=4, **V3_ROUTING,
        ),
    ),
}  # fmt: skip
"""Shapes and routing as in the config.json of DeepSeek-V2-Lite, DeepSeek-V2 and DeepSeek-V3."""
# torchtitan's name for the same with FlexAttention, which CUDA always has here.
flavors["debugmodel_flex_attn"] = flavors["debugmodel"]


def plan(config: DeepSeekV3Config) -> ParallelPlan:
    """How the model is cut."""
    every, experts = tables.all_layers(config.n_mtp_layers), config.experts
    sparse = range(config.n_dense_layers, config.n_layers)
    return tables.decoder_plan(
        tables.latent_attention_styles(config.q_lora_rank, every)
        | tables.feed_forward_styles(config.n_layers, sparse=sparse, experts=experts, layers=every),
        experts={f"{every}.moe": "grouped_experts"} if experts is not None else {},
        n_mtp_layers=config.n_mtp_layers,
    )


def init(config: DeepSeekV3Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    feed_forward = tables.feed_forward_init(dense=config.n_dense_layers > 0, experts=config.experts)
    of_layers = tables.latent_attention_init() | feed_forward
    return tables.decoder_init(config.dim, of_layers, n_mtp_layers=config.n_mtp_layers)


def flops_per_token(config: DeepSeekV3Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    return decoder_flops_per_token(
        multiplied_parameters(DeepSeekV3, config),
        n_layers=config.n_layers + config.n_mtp_layers,
        n_heads=config.n_heads,
        head_dim=(config.qk_head_dim + config.v_head_dim) / 2,
        seq_len=seq_len,
    )


train_spec = TrainSpec(
    name="deepseek_v3",
    model=DeepSeekV3,
    flavors=flavors,
    plan=plan,
    init=init,
    check=second_token_has_both_ends,
    flops_per_unit=flops_per_token,
    multiplied=multiplied,
    cache=key_value_cache,
    **hooks_of_experts(lambda config: config.experts),
)
