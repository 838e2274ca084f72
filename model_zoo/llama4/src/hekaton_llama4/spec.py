"""Llama 4's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.init import Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    RopeScaling,
    decoder_flops_per_token,
    hooks_of_experts,
    key_value_cache,
    multiplied,
    multiplied_parameters,
    tables,
)
from hekaton_llama4.model import Llama4, Llama4Config

ROUTING: dict[str, Any] = {
    "top_k": 1, "n_shared_experts": 1, "score": "sigmoid", "weights_on_input": True, "batch_balance": 1e-3,
}  # fmt: skip
"""Of every flavor; the weight of the balance loss is ``router_aux_loss_coef`` of the published files."""

SCOUT_SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0)
flavors = {
    # torchtitan's shapes; chunks that a sequence of 256 tokens has several of.
    "debugmodel": Llama4Config(
        dim=256, n_layers=6, n_heads=16, n_kv_heads=16, head_dim=16, hidden_dim=768, vocab_size=2_048,
        interleave_moe_layer_step=2, attention_chunk_size=64, floor_scale=64, rope_scaling=SCOUT_SCALING,
        moe=MoEConfig(n_experts=8, hidden_dim=512, **ROUTING),
    ),
    "17bx16e": Llama4Config(
        dim=5_120, n_layers=48, n_heads=40, n_kv_heads=8, hidden_dim=16_384, rope_scaling=SCOUT_SCALING,
        moe=MoEConfig(n_experts=16, hidden_dim=8_192, **ROUTING),
    ),
    "17bx128e": Llama4Config(
        dim=5_120, n_layers=48, n_heads=40, n_kv_heads=8, hidden_dim=16_384, interleave_moe_layer_step=2,
        qk_norm=False, moe=MoEConfig(n_experts=128, hidden_dim=8_192, **ROUTING),
    ),
}  # fmt: skip
"""Shapes as in the config.json of Llama 4 Scout (``17bx16e``) and Maverick (``17bx128e``)."""
# torchtitan's names of the same with layers without positions, which the published models all have.
flavors |= {f"{name}_irope": config for name, config in flavors.items()}


def plan(config: Llama4Config) -> ParallelPlan:
    """How the model is cut."""
    sparse = config.layers_with_experts
    return tables.decoder_plan(
        tables.attention_styles()
        | tables.feed_forward_styles(config.n_layers, sparse=sparse, experts=config.moe),
        experts={"layers.*.moe": "grouped_experts"} if sparse else {},
    )


def init(config: Llama4Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    sparse = config.layers_with_experts
    feed_forward = tables.feed_forward_init(
        dense=len(sparse) < config.n_layers, experts=config.moe if sparse else None
    )
    return tables.decoder_init(config.dim, tables.attention_init() | feed_forward)


def flops_per_token(config: Llama4Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    local = sum(map(config.has_positions, range(config.n_layers)))
    heads: dict[str, Any] = {"n_heads": config.n_heads, "head_dim": config.head_dim, "seq_len": seq_len}
    multiplied = multiplied_parameters(Llama4, config)
    return decoder_flops_per_token(multiplied, n_layers=config.n_layers - local, **heads) + (
        decoder_flops_per_token(0, n_layers=local, chunk=config.attention_chunk_size, **heads)
    )


train_spec = TrainSpec(
    name="llama4",
    model=Llama4,
    flavors=flavors,
    plan=plan,
    init=init,
    flops_per_unit=flops_per_token,
    multiplied=multiplied,
    cache=key_value_cache,
    **hooks_of_experts(lambda config: config.moe if config.layers_with_experts else None),
)
