"""DeepSeek V3's tables: flavors, how it is cut, how it starts, what it costs."""

from __future__ import annotations

from collections.abc import Mapping

from hekaton.init import Constant, Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton_blocks import (
    MoEConfig,
    YarnScaling,
    balance_terms,
    decoder_flops_per_token,
    key_value_cache,
    report_experts,
    tables,
    update_experts,
)
from hekaton_blocks.multi_token import MULTI_TOKEN_ENDS, second_token_has_both_ends
from hekaton_deepseek_v3.model import DeepSeekV3, DeepSeekV3Config

V2_SCALING = YarnScaling(factor=40.0, mscale=0.707, mscale_all_dim=0.707)
V3_SCALING = YarnScaling(factor=40.0, mscale=1.0, mscale_all_dim=1.0)

flavors = {
    # torchtitan's shapes, with V3's routing and balance.
    "debugmodel": DeepSeekV3Config(
        dim=256, n_layers=6, n_dense_layers=1, n_heads=16, inter_dim=1_024, vocab_size=2_048,
        rope_scaling=V3_SCALING,
        moe=MoEConfig(
            n_experts=8, top_k=3, hidden_dim=256, n_shared_experts=2, score="sigmoid", renormalise=True,
            n_groups=4, n_limited_groups=2, bias_rate=1e-3, sequence_balance=1e-4,
        ),
    ),
    "16B": DeepSeekV3Config(
        dim=2_048, n_layers=27, n_dense_layers=1, n_heads=16, inter_dim=10_944, rope_scaling=V2_SCALING,
        moe=MoEConfig(
            n_experts=64, top_k=6, hidden_dim=1_408, n_shared_experts=2, group_score="max",
            sequence_balance=1e-3,
        ),
    ),
    "236B": DeepSeekV3Config(
        dim=5_120, n_layers=60, n_dense_layers=1, n_heads=128, inter_dim=12_288, q_lora_rank=1_536,
        rope_scaling=V2_SCALING,
        moe=MoEConfig(
            n_experts=160, top_k=6, hidden_dim=1_536, n_shared_experts=2, route_scale=16.0, n_groups=8,
            n_limited_groups=3, group_score="max", sequence_balance=1e-3,
        ),
    ),
    "671B": DeepSeekV3Config(
        dim=7_168, n_layers=61, n_dense_layers=3, n_heads=128, inter_dim=18_432, q_lora_rank=1_536,
        vocab_size=129_280, rope_scaling=V3_SCALING,
        moe=MoEConfig(
            n_experts=256, top_k=8, hidden_dim=2_048, n_shared_experts=1, score="sigmoid", renormalise=True,
            route_scale=2.5, n_groups=8, n_limited_groups=4, bias_rate=1e-3, sequence_balance=1e-4,
        ),
    ),
}  # fmt: skip
"""Shapes and routing as in the config.json of DeepSeek-V2-Lite, DeepSeek-V2 and DeepSeek-V3; of V2 the weight
of the balance loss as well (``aux_loss_alpha``), of V3 that and the rate of the bias as in its report."""
# torchtitan's name for the same with FlexAttention, which CUDA always has here.
flavors["debugmodel_flex_attn"] = flavors["debugmodel"]


def plan(config: DeepSeekV3Config) -> ParallelPlan:
    """How the model is cut.

    Under tensor parallel heads are cut. The projections to latents are whole on every rank and work on its
    part of the sequence, so that latents are gathered, which are narrower than what they are made from.
    """
    every = _every(config)
    queries = {"wq": "gathering_colwise"}
    if config.q_lora_rank:
        queries = {"wq_a": "local_linear", "q_norm": "sequence_norm", "wq_b": "colwise"}
    dense, experts = config.n_dense_layers, config.experts
    feed_forward = tables.feed_forward_styles(
        config.n_layers, sparse=range(dense, config.n_layers), experts=experts, layers=every
    )
    return tables.decoder_plan(
        {
            f"{every}.attention_norm": "local_norm",
            **{f"{every}.attention.{name}": style for name, style in queries.items()},
            f"{every}.attention.wkv_a": "local_linear",
            f"{every}.attention.kv_norm": "sequence_norm",
            f"{every}.attention.shared_key": "gather_for_heads",
            f"{every}.attention.wkv_b": "colwise",
            f"{every}.attention.wo": "rowwise",
            **feed_forward,
        },
        experts={f"{every}.moe": "grouped_experts"} if experts is not None else {},
        layers=every,
        ends=MULTI_TOKEN_ENDS if config.n_mtp_layers else tables.ENDS,
    )


def _every(config: DeepSeekV3Config) -> str:
    """The pattern of all layers."""
    return "{layers,mtp_layers}.*" if config.n_mtp_layers else "layers.*"


def init(config: DeepSeekV3Config) -> Mapping[str, Initializer]:
    """How the model starts."""
    of_layers: dict[str, Initializer] = {
        "**.{q_norm,kv_norm}.weight": Constant(1.0),
        "**.attention.{wq,wq_a,wq_b,wkv_a,wkv_b}.weight": tables.SMALL,
        "**.attention.wo.weight": tables.DEEP,
        **tables.feed_forward_init(dense=config.n_dense_layers > 0, experts=config.experts),
    }
    if config.n_mtp_layers:
        of_layers |= {
            "mtp_layers.*.{enorm,hnorm,norm}.weight": Constant(1.0),
            "mtp_layers.*.eh_proj.weight": tables.SMALL,
        }
    return tables.decoder_init(config.dim, of_layers)


def flops_per_token(config: DeepSeekV3Config, seq_len: int) -> float:
    """Forward and backward, per token of a sequence of ``seq_len``."""
    dim, heads = config.dim, config.n_heads
    queries = heads * config.qk_head_dim
    attention = dim * (config.kv_lora_rank + config.qk_rope_head_dim)
    attention += config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    attention += heads * config.v_head_dim * dim
    attention += config.q_lora_rank * (dim + queries) if config.q_lora_rank else dim * queries
    feed_forward = config.n_dense_layers * 3 * dim * config.inter_dim
    if (experts := config.experts) is not None:
        with_experts = config.n_layers - config.n_dense_layers + config.n_mtp_layers
        feed_forward += with_experts * tables.multiplied_by_experts(dim, experts)
    layers = config.n_layers + config.n_mtp_layers
    ends = (1 + config.n_mtp_layers) * dim * config.vocab_size + config.n_mtp_layers * 2 * dim * dim
    return decoder_flops_per_token(
        layers * attention + feed_forward + ends,
        n_layers=layers,
        n_heads=heads,
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
    cache=key_value_cache,
    before_step=update_experts,
    report=report_experts,
    terms=lambda config: balance_terms(config.experts),
)
