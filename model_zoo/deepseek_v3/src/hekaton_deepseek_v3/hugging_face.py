"""DeepSeek V3 and V2 as transformers' ``DeepseekV3ForCausalLM`` and ``DeepseekV2ForCausalLM``.

Scores of a sigmoid are V3, those of a softmax V2. Layouts are the same, but that experts are stacked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Entry, WeightTable, entry
from hekaton_blocks import MoEConfig
from hekaton_blocks import hugging_face as hf
from hekaton_deepseek_v3.model import DeepSeekV3Config

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
    "attention_bias": False, "rope_interleave": True, "rope_theta": 10_000.0,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
V2_DEFAULTS = {
    "vocab_size": 102_400, "hidden_size": 4_096, "intermediate_size": 11_008, "moe_intermediate_size": 1_407,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None, "n_shared_experts": 2,
    "n_routed_experts": 64, "routed_scaling_factor": 1.0, "kv_lora_rank": 512, "q_lora_rank": 1_536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": None, "topk_group": None,
    "num_experts_per_tok": None, "first_k_dense_replace": 0, "norm_topk_prob": False, "hidden_act": "silu",
    "max_position_embeddings": 2_048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "topk_method": "greedy", "rope_theta": 10_000.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_KNOWN = {
    "attention_bias": (False,), "mlp_bias": (False,), "tie_word_embeddings": (False,), "moe_layer_freq": (1,),
    "hidden_act": ("silu", "swish"), "rope_interleave": (True,),
}  # fmt: skip
_LATENT = {
    "wq": "q_proj", "wq_a": "q_a_proj", "q_norm": "q_a_layernorm", "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj", "wo": "o_proj",
}  # fmt: skip
_COPIES = {"embed_tokens": "model.embed_tokens.weight", "shared_head.head": "lm_head.weight"}
"""Of the layer for a second token: what repeats a tensor of the model."""


def table(config: DeepSeekV3Config) -> WeightTable:
    """Names differ, and experts are one tensor here and one each there."""
    layers, experts, mtp = config.n_layers, config.experts, config.n_mtp_layers
    dense, sparse = range(config.n_dense_layers), range(config.n_dense_layers, layers)
    further = range(layers, layers + 1)
    entries = hf.decoder_entries(_attention(config), layers=range(layers))
    entries += hf.module_entries(hf.feed_forward_modules("feed_forward", "mlp"), layers=dense)
    own = hf.balance_tensors(experts, layers=sparse, bias=False)
    tied, left_out = {}, {}
    if experts is not None:
        entries += _expert_entries(experts, sparse)
        second = _second_token(config, experts, further)
        copies = {f"model.layers.{layers}.{name}.weight": of for name, of in _COPIES.items()}
        if mtp:
            entries, tied = entries + second, copies
            own += hf.balance_tensors(experts, layers=further, bias=False, prefix="mtp_layers.{i}.")
        elif experts.score == "sigmoid":
            names = [name.replace("{i}", str(layers)) for one in second for name in one.hf]
            left_out[f"multi-token prediction (model.layers.{layers})"] = {
                *copies,
                *(
                    name.replace("{e}", str(expert))
                    for name in names
                    for expert in range(experts.n_experts if "{e}" in name else 1)
                ),
            }
    return WeightTable(
        entries=entries,
        layers=layers + mtp,
        experts=0 if experts is None else experts.n_experts,
        tied=tied,
        own=own,
        left_out=left_out,
    )


def _attention(config: DeepSeekV3Config) -> dict[str, str]:
    """The modules of a layer's attention, and its norms."""
    without = {"wq"} if config.q_lora_rank else {"wq_a", "q_norm", "wq_b"}
    latent = {
        f"attention.{name}": f"self_attn.{there}" for name, there in _LATENT.items() if name not in without
    }
    return {"attention_norm": "input_layernorm", **latent, "ffn_norm": "post_attention_layernorm"}


def _expert_entries(experts: MoEConfig, layers: range, *, ours: str = hf.OURS) -> list[Entry]:
    modules = {"moe.router.gate": "mlp.gate"}
    if experts.n_shared_experts:
        modules |= hf.feed_forward_modules("moe.shared_experts", "mlp.shared_experts")
    entries = hf.module_entries(modules, layers=layers, ours=ours)
    entries += hf.separate_experts(experts.n_experts, layers=layers, ours=ours)
    if experts.bias_rate is not None:
        there = f"{hf.THEIRS}mlp.gate.e_score_correction_bias"
        entries.append(entry(f"{ours}moe.expert_bias", there, layers=layers))
    return entries


def _second_token(config: DeepSeekV3Config, experts: MoEConfig, layers: range) -> list[Entry]:
    """The entries of the layer for a second token."""
    own = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "norm": "shared_head.norm"}
    ours = "mtp_layers.{i}."
    modules = hf.module_entries(_attention(config) | own, layers=layers, ours=ours)
    return modules + _expert_entries(experts, layers, ours=ours)


def write_config(config: DeepSeekV3Config) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for routing that neither model of transformers has.
    """
    scaling, experts = config.rope_scaling, config.experts
    v2 = experts is not None and experts.score == "softmax"
    content = hf.decoder_content(
        config, model_type="deepseek_v2" if v2 else "deepseek_v3", context=CONTEXT
    ) | {
        "architectures": [V2 if v2 else V3],
        "first_k_dense_replace": config.n_dense_layers,
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_lora_rank or None,
        "kv_lora_rank": config.kv_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
        "intermediate_size": config.inter_dim,
        "rope_scaling": None
        if scaling is None
        else {"type": "yarn", **{key: getattr(scaling, name) for name, key in hf.YARN_KEYS.items()}},
        "num_nextn_predict_layers": config.n_mtp_layers,
    }
    return content if experts is None else content | _experts_content(experts, v2=v2)


def _experts_content(experts: MoEConfig, *, v2: bool) -> dict[str, Any]:
    wanted = {
        "renormalise": False if v2 else experts.renormalise,
        "group_score": "max" if v2 else "sum_of_top2",
        "weights_on_input": False,
    }
    lines = [
        f"moe.{name} = {getattr(experts, name)!r}, there it is {value!r}"
        for name, value in wanted.items()
        if getattr(experts, name) != value and (name != "group_score" or experts.n_groups > 1)
    ]
    if (experts.bias_rate is None) != v2:
        lines.append(f"moe.bias_rate = {experts.bias_rate}, there is {'no' if v2 else 'a'} bias")
    if not experts.n_shared_experts:
        lines.append("moe.n_shared_experts = 0, there is always one")
    if lines:
        raise CheckpointError(
            f"{V2 if v2 else V3} of transformers does not compute what this model does", hint="\n".join(lines)
        )
    greedy = "group_limited_greedy" if experts.n_groups > 1 else "greedy"
    return {
        "n_routed_experts": experts.n_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.hidden_dim,
        "n_shared_experts": experts.n_shared_experts,
        "n_group": experts.n_groups,
        "topk_group": experts.n_limited_groups,
        "norm_topk_prob": experts.renormalise,
        "routed_scaling_factor": experts.route_scale,
        "scoring_func": experts.score,
        "topk_method": greedy if v2 else "noaux_tc",
    }


def defaults(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``config.json`` of this content leaves out."""
    return V2_DEFAULTS if _is_v2(content) else V3_DEFAULTS


def read_config(content: Mapping[str, Any]) -> DeepSeekV3Config:
    """The configuration that ``config.json`` describes; how experts are balanced, it does not say, and is as
    for the published model.

    A layer for a second token is read with ``n_mtp_layers`` in the model's overrides.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    v2 = _is_v2(content)
    content = {**defaults(content), **content}
    known = {
        **_KNOWN,
        "scoring_func": ("softmax",) if v2 else ("sigmoid",),
        "topk_method": ("greedy", "group_limited_greedy") if v2 else ("noaux_tc",),
        "norm_topk_prob": (False,) if v2 else (True, False),
        "num_key_value_heads": (hf.whole(content, "num_attention_heads"), None),
    }
    hf.check_known(content, known, model="deepseek_v3")
    hf.whole({"num_nextn_predict_layers": 0, **content}, "num_nextn_predict_layers", least=0)
    fields = hf.decoder_fields(content, model="deepseek_v3", kinds=("default", "yarn"))
    dense = hf.whole(content, "first_k_dense_replace", least=0)
    return DeepSeekV3Config(
        **fields,
        n_dense_layers=min(dense, fields["n_layers"]),
        inter_dim=hf.whole(content, "intermediate_size"),
        moe=_experts(content, v2=v2) if dense < fields["n_layers"] else None,
        q_lora_rank=0 if content["q_lora_rank"] is None else hf.whole(content, "q_lora_rank"),
        kv_lora_rank=hf.whole(content, "kv_lora_rank"),
        qk_nope_head_dim=hf.whole(content, "qk_nope_head_dim"),
        qk_rope_head_dim=hf.whole(content, "qk_rope_head_dim"),
        v_head_dim=hf.whole(content, "v_head_dim"),
    )


def _is_v2(content: Mapping[str, Any]) -> bool:
    return V2 in (content.get("architectures") or ()) or content.get("model_type") == "deepseek_v2"


def _experts(content: Mapping[str, Any], *, v2: bool) -> MoEConfig:
    grouped = not v2 or content["topk_method"] == "group_limited_greedy"
    return MoEConfig(
        n_experts=hf.whole(content, "n_routed_experts"),
        top_k=hf.whole(content, "num_experts_per_tok"),
        hidden_dim=hf.whole(content, "moe_intermediate_size"),
        n_shared_experts=hf.whole(content, "n_shared_experts"),
        score="softmax" if v2 else "sigmoid",
        renormalise=hf.flag(content, "norm_topk_prob"),
        route_scale=hf.number(content, "routed_scaling_factor", most=1e6),
        n_groups=hf.whole(content, "n_group") if grouped else 1,
        n_limited_groups=hf.whole(content, "topk_group") if grouped else 1,
        group_score="max" if v2 else "sum_of_top2",
        bias_rate=None if v2 else 1e-3,
        sequence_balance=1e-3 if v2 else 1e-4,
    )
