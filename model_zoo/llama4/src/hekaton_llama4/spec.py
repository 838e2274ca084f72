"""Llama 4's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.init import Constant, DepthScaled, Initializer, Normal, TruncatedNormal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    RopeScaling,
    balance_terms,
    decoder_flops_per_token,
    key_value_cache,
    report_experts,
    update_experts,
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
    return ParallelPlan(
        block="layers.*",
        tensor={
            "tok_embeddings": "vocab_embedding",
            "layers.*.attention_norm": "sequence_norm",
            "layers.*.attention.{wq,wk,wv}": "colwise",
            "layers.*.attention.wo": "rowwise",
            **_feed_forward(config),
            "norm": "sequence_norm",
            "output": "vocab_output",
        },
        experts={"layers.*.moe": "grouped_experts"} if config.layers_with_experts else {},
        context=["layers.*.attention.inner"],
        stages=Stages(first=["tok_embeddings"], layers="layers", last=["norm", "output"]),
    )


def _feed_forward(config: Llama4Config) -> dict[str, str]:
    """Experts and the shared one work on each rank's part of the sequence."""
    sparse = config.layers_with_experts
    dense = [layer for layer in range(config.n_layers) if layer not in sparse]
    words = {}
    if dense:
        words[f"layers.{_any_of(dense)}.ffn_norm"] = "sequence_norm"
        words |= {"layers.*.feed_forward.{w1,w3}": "colwise", "layers.*.feed_forward.w2": "rowwise"}
    if sparse:
        words[f"layers.{_any_of(sparse)}.ffn_norm"] = "part_norm"
        words |= {"layers.*.moe": "part_layer", "layers.*.moe.router.gate": "part_linear"}
        if config.moe is not None and config.moe.n_shared_experts:
            words["layers.*.moe.shared_experts.{w1,w2,w3}"] = "part_linear"
    return words


def _any_of(layers: range | list[int]) -> str:
    return f"{{{','.join(map(str, layers))}}}"


def init(config: Llama4Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    small, deep = TruncatedNormal(0.02), DepthScaled(0.02)
    sparse = config.layers_with_experts
    table: dict[str, Initializer] = {
        "tok_embeddings.weight": Normal(1.0),
        "layers.*.{attention_norm,ffn_norm}.weight": Constant(1.0),
        "layers.*.attention.{wq,wk,wv}.weight": small,
        "layers.*.attention.wo.weight": deep,
        "norm.weight": Constant(1.0),
        "output.weight": TruncatedNormal(config.dim**-0.5, cutoff=3 * config.dim**-0.5),
    }
    if len(sparse) < config.n_layers or (config.moe is not None and config.moe.n_shared_experts):
        table |= {"**.w1.weight": small, "**.{w2,w3}.weight": deep}
    if sparse:
        table |= {"**.experts.w1": small, "**.experts.{w2,w3}": deep, "**.router.gate.weight": deep}
    return table


def flops_per_token(config: Llama4Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    dim, sparse = config.dim, config.layers_with_experts
    attention = 2 * dim * config.head_dim * (config.n_heads + config.n_kv_heads)
    feed_forward = (config.n_layers - len(sparse)) * 3 * dim * config.hidden_dim
    if config.moe is not None:
        active = 3 * dim * config.moe.hidden_dim * (config.moe.top_k + config.moe.n_shared_experts)
        feed_forward += len(sparse) * (active + dim * config.moe.n_experts)
    multiplied = config.n_layers * attention + feed_forward + dim * config.vocab_size
    with_positions = sum(map(config.has_positions, range(config.n_layers)))
    heads: dict[str, Any] = {"n_heads": config.n_heads, "head_dim": config.head_dim}
    return decoder_flops_per_token(
        multiplied, n_layers=config.n_layers - with_positions, seq_len=seq_len, **heads
    ) + decoder_flops_per_token(0, n_layers=with_positions, seq_len=_reach(config, seq_len), **heads)


def _reach(config: Llama4Config, seq_len: int) -> int:
    """The length of the sequence that costs as much in chunks: theirs, weighted by their tokens."""
    chunk = config.attention_chunk_size or seq_len
    whole, rest = divmod(seq_len, chunk)
    return round((whole * chunk**2 + rest**2) / seq_len)


train_spec = TrainSpec(
    name="llama4",
    model=Llama4,
    flavors=flavors,
    plan=plan,
    init=init,
    flops_per_unit=flops_per_token,
    cache=key_value_cache,
    before_step=update_experts,
    report=report_experts,
    terms=lambda config: balance_terms(config.moe if config.layers_with_experts else None),
)
