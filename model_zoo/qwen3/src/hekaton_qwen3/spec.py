"""Qwen 3's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping

from hekaton.init import Constant, DepthScaled, Initializer, Normal, TruncatedNormal
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    balance_terms,
    decoder_flops_per_token,
    key_value_cache,
    report_experts,
    update_experts,
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
    if config.moe is None:
        feed_forward = {
            "layers.*.ffn_norm": "sequence_norm",
            "layers.*.feed_forward.{w1,w3}": "colwise",
            "layers.*.feed_forward.w2": "rowwise",
        }
    else:
        feed_forward = {
            "layers.*.ffn_norm": "part_norm",
            "layers.*.moe": "part_layer",
            "layers.*.moe.router.gate": "part_linear",
        }
    return ParallelPlan(
        block="layers.*",
        tensor={
            "tok_embeddings": "vocab_embedding",
            "layers.*.attention_norm": "sequence_norm",
            "layers.*.attention.{wq,wk,wv}": "colwise",
            "layers.*.attention.{q_norm,k_norm}": "head_norm",
            "layers.*.attention.wo": "rowwise",
            **feed_forward,
            "norm": "sequence_norm",
            "output": "vocab_output",
        },
        experts={"layers.*.moe": "grouped_experts"} if config.moe is not None else {},
        context=["layers.*.attention.inner"],
        stages=Stages(first=["tok_embeddings"], layers="layers", last=["norm", "output"]),
    )


def init(config: Qwen3Config) -> Mapping[str, Initializer]:
    """How the model starts.

    A tied embedding is drawn small: each token's hidden state begins as its own embedding, so at the scale of
    a separate one the first logits would all but repeat the input.
    """
    if config.moe is None:
        feed_forward: dict[str, Initializer] = {
            "layers.*.feed_forward.w1.weight": TruncatedNormal(0.02),
            "layers.*.feed_forward.{w2,w3}.weight": DepthScaled(0.02),
        }
    else:
        feed_forward = {
            "layers.*.moe.router.gate.weight": TruncatedNormal(0.02),
            "layers.*.moe.experts.w1": TruncatedNormal(0.02),
            "layers.*.moe.experts.{w2,w3}": DepthScaled(0.02),
        }
    return {
        "tok_embeddings.weight": TruncatedNormal(0.02) if config.tie_embeddings else Normal(1.0),
        "layers.*.{attention_norm,ffn_norm}.weight": Constant(1.0),
        "layers.*.attention.{q_norm,k_norm}.weight": Constant(1.0),
        "layers.*.attention.{wq,wk,wv}.weight": TruncatedNormal(0.02),
        "layers.*.attention.wo.weight": DepthScaled(0.02),
        **feed_forward,
        "norm.weight": Constant(1.0),
        "output.weight": TruncatedNormal(config.dim**-0.5, cutoff=3 * config.dim**-0.5),
    }


def flops_per_token(config: Qwen3Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    heads = 2 * config.n_heads + 2 * config.n_kv_heads
    width = config.hidden_dim
    router = 0
    if config.moe is not None:
        width, router = config.moe.top_k * config.moe.hidden_dim, config.moe.n_experts
    layer = config.dim * (config.head_dim * heads + 3 * width + router)
    return decoder_flops_per_token(
        config.n_layers * layer + config.dim * config.vocab_size,
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
    cache=key_value_cache,
    before_step=update_experts,
    report=report_experts,
    terms=lambda config: balance_terms(config.moe),
)
