"""DeepSeek V3 and V2 as transformers' ``DeepseekV3ForCausalLM`` and ``DeepseekV2ForCausalLM``.

Scores of a sigmoid are V3, those of a softmax V2. Layouts are the same, but that experts are stacked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.weights import WeightTable
from hekaton_blocks import MoEConfig
from hekaton_blocks import hugging_face as hf
from hekaton_deepseek_v3.model import DeepSeekV3Config
from hekaton_deepseek_v3.spec import V2_ROUTING, V3_ROUTING

V3, V2 = "DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM"
CONTEXT = 163_840
"""Positions in the published ``config.json`` files."""

# Of transformers' DeepseekV3Config and DeepseekV2Config: what a config.json leaves out is this.
V3_DEFAULTS = {
    "vocab_size": 129_280, "hidden_size": 7_168, "intermediate_size": 18_432, "moe_intermediate_size": 2_048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1_536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True, "hidden_act": "silu",
    "max_position_embeddings": 4_096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "rope_theta": 10_000.0,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
V2_DEFAULTS = V3_DEFAULTS | {
    "vocab_size": 102_400, "hidden_size": 4_096, "intermediate_size": 11_008, "moe_intermediate_size": 1_407,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None, "n_shared_experts": 2,
    "n_routed_experts": 64, "routed_scaling_factor": 1.0, "n_group": None, "topk_group": None,
    "num_experts_per_tok": None, "first_k_dense_replace": 0, "norm_topk_prob": False,
    "max_position_embeddings": 2_048, "topk_method": "greedy", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_KNOWN = {
    "attention_bias": (False,), "mlp_bias": (False,), "tie_word_embeddings": (False,), "moe_layer_freq": (1,),
    "hidden_act": ("silu", "swish"), "rope_interleave": (True,),
}  # fmt: skip
_SAME = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_SIZES = {"inter_dim": "intermediate_size", **{name: name for name in _SAME}}
_EXPERTS = {
    "n_experts": "n_routed_experts", "top_k": "num_experts_per_tok", "hidden_dim": "moe_intermediate_size",
    "n_shared_experts": "n_shared_experts",
}  # fmt: skip
_BIAS = "gate.e_score_correction_bias"
_GROUPS = {"n_groups": "n_group", "n_limited_groups": "topk_group"}


def table(config: DeepSeekV3Config) -> WeightTable:
    """Names differ, and experts are one tensor here and one each there."""
    layers, experts = config.n_layers, config.experts
    attention = hf.latent_attention_modules(config.q_lora_rank)
    dense, sparse = range(config.n_dense_layers), range(config.n_dense_layers, layers)
    every = WeightTable(
        entries=[
            *hf.decoder_entries(attention, layers=range(layers)),
            *hf.module_entries(hf.feed_forward_modules("feed_forward", "mlp"), layers=dense),
            *([] if experts is None else hf.separate_experts(experts, layers=sparse, bias=_BIAS)),
        ],
        layers=layers,
        experts=0 if experts is None else experts.n_experts,
        own=hf.balance_tensors(experts, layers=sparse, bias=False),
    )
    if experts is None or not (config.n_mtp_layers or experts.score == "sigmoid"):
        return every
    further: dict[str, Any] = {"layers": range(layers, layers + 1), "ours": hf.OF_SECOND_TOKEN}
    second = hf.module_entries(attention, **further)
    second += hf.separate_experts(experts, bias=_BIAS, **further)
    return hf.with_second_token(every, second, experts=experts, trained=config.n_mtp_layers > 0)


def write_config(config: DeepSeekV3Config) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for routing that neither model of transformers has.
    """
    scaling, experts = config.rope_scaling, config.experts
    v2 = experts is not None and experts.score == "softmax"
    kind = "deepseek_v2" if v2 else "deepseek_v3"
    return {
        "architectures": [V2 if v2 else V3],
        **hf.decoder_content(config, model_type=kind, context=CONTEXT),
        **hf.sizes_content(config, _SIZES),
        "first_k_dense_replace": config.n_dense_layers,
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_lora_rank or None,
        "rope_scaling": None if scaling is None else {"type": "yarn", **hf.yarn_content(scaling)},
        "num_nextn_predict_layers": config.n_mtp_layers,
        **({} if experts is None else _experts_content(experts, v2=v2)),
    }


def _experts_content(experts: MoEConfig, *, v2: bool) -> dict[str, Any]:
    wanted = {"weights_on_input": False, "n_shared_experts": max(experts.n_shared_experts, 1)}
    wanted |= {"renormalise": False} if v2 else {}
    if experts.n_groups > 1:
        wanted["group_score"] = (V2_ROUTING if v2 else V3_ROUTING)["group_score"]
    hf.check_experts(experts, wanted, architecture=V2 if v2 else V3, biased=not v2)
    greedy = "group_limited_greedy" if experts.n_groups > 1 else "greedy"
    return {
        **hf.sizes_content(experts, _EXPERTS | _GROUPS),
        "norm_topk_prob": experts.renormalise,
        "routed_scaling_factor": experts.route_scale,
        "scoring_func": experts.score,
        "topk_method": greedy if v2 else "noaux_tc",
    }


def defaults(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``config.json`` of this content leaves out."""
    return V2_DEFAULTS if _is_v2(content) else V3_DEFAULTS


def _is_v2(content: Mapping[str, Any]) -> bool:
    return V2 in (content.get("architectures") or ()) or content.get("model_type") == "deepseek_v2"


def read_config(content: Mapping[str, Any]) -> DeepSeekV3Config:
    """The configuration that ``config.json`` describes; how experts are balanced, it does not say, and is as
    published. A layer for a second token is read with ``n_mtp_layers`` in the model's overrides.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    v2 = _is_v2(content)
    content = {"num_nextn_predict_layers": 0, **defaults(content), **content}
    known = {
        **_KNOWN,
        "scoring_func": ("softmax",) if v2 else ("sigmoid",),
        "topk_method": ("greedy", "group_limited_greedy") if v2 else ("noaux_tc",),
        "norm_topk_prob": (False,) if v2 else (True, False),
        "num_key_value_heads": (hf.whole(content, "num_attention_heads"), None),
    }
    hf.check_known(content, known, model="deepseek_v3")
    hf.whole(content, "num_nextn_predict_layers", least=0)
    fields = hf.decoder_fields(content, model="deepseek_v3", kinds=("default", "yarn"))
    dense = min(hf.whole(content, "first_k_dense_replace", least=0), fields["n_layers"])
    return DeepSeekV3Config(
        **fields,
        **hf.sizes(content, _SIZES),
        n_dense_layers=dense,
        q_lora_rank=0 if content["q_lora_rank"] is None else hf.whole(content, "q_lora_rank"),
        moe=_routing(content, v2=v2) if dense < fields["n_layers"] else None,
    )


def _routing(content: Mapping[str, Any], *, v2: bool) -> MoEConfig:
    grouped = not v2 or content["topk_method"] == "group_limited_greedy"
    return MoEConfig(
        **hf.sizes(content, _EXPERTS | (_GROUPS if grouped else {})),
        **(V2_ROUTING if v2 else V3_ROUTING) | {"renormalise": hf.flag(content, "norm_topk_prob")},
        route_scale=hf.number(content, "routed_scaling_factor", most=1e6),
    )
