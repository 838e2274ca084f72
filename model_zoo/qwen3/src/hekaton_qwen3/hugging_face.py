"""Qwen 3 as transformers' ``Qwen3ForCausalLM`` and ``Qwen3MoeForCausalLM``: names and ``config.json``; apart
from experts, which are a file's tensors each, layouts are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.weights import WeightTable
from hekaton_blocks import MoEConfig
from hekaton_blocks import hugging_face as hf
from hekaton_qwen3 import QWEN3_DEFAULTS, QWEN3_MOE_DEFAULTS
from hekaton_qwen3.model import Qwen3Config

CONTEXT = 40_960
"""Positions in the published ``config.json``."""
_KNOWN = {
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "tie_word_embeddings": (False, True),
}
_ALWAYS_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)}


def table(config: Qwen3Config) -> WeightTable:
    """Names alone differ, and ours has the experts of a layer in one tensor."""
    moe = config.moe
    of_layers = hf.ATTENTION | {f"attention.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")}
    if moe is None:
        of_layers |= hf.feed_forward_modules("feed_forward", "mlp")
    return WeightTable(
        entries=[
            *hf.decoder_entries(of_layers, tied=config.tie_embeddings),
            *([] if moe is None else hf.separate_experts(moe)),
        ],
        layers=config.n_layers,
        experts=moe.n_experts if moe is not None else 0,
        tied=hf.tied_output(config.tie_embeddings),
        own=hf.balance_tensors(moe),
    )


def write_config(config: Qwen3Config) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for experts of another kind than transformers' model has.
    """
    sparse = config.moe is not None
    common = hf.decoder_content(config, model_type="qwen3_moe" if sparse else "qwen3", context=CONTEXT)
    return {
        "architectures": ["Qwen3MoeForCausalLM" if sparse else "Qwen3ForCausalLM"],
        **common,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_embeddings,
        **({} if config.moe is None else _experts_content(config.moe)),
    }


def _experts_content(moe: MoEConfig) -> dict[str, Any]:
    plain = MoEConfig(
        n_experts=moe.n_experts, top_k=moe.top_k, hidden_dim=moe.hidden_dim, renormalise=moe.renormalise
    )
    hf.check_experts(moe, vars(plain), architecture="Qwen3MoeForCausalLM")
    return {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden_dim,
        "norm_topk_prob": moe.renormalise,
        "router_aux_loss_coef": moe.batch_balance,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def read_config(content: Mapping[str, Any]) -> Qwen3Config:
    """The configuration that ``config.json`` describes, written by transformers before 5 or since.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    sparse = "Qwen3MoeForCausalLM" in (content.get("architectures") or ()) or (
        content.get("model_type") == "qwen3_moe"
    )
    content = {**(QWEN3_MOE_DEFAULTS if sparse else QWEN3_DEFAULTS), **content}
    hf.check_known(content, _KNOWN | (_ALWAYS_SPARSE if sparse else {}), model="qwen3")
    fields = hf.decoder_fields(content, model="qwen3")
    del fields["rope_scaling"]  # always none
    return Qwen3Config(
        **fields,
        n_kv_heads=hf.key_heads(content),
        head_dim=hf.head_dim(content),
        hidden_dim=hf.whole(content, "intermediate_size"),
        tie_embeddings=hf.flag(content, "tie_word_embeddings"),
        moe=_experts(content) if sparse else None,
    )


def _experts(content: Mapping[str, Any]) -> MoEConfig:
    """transformers' name for the number of experts is ``num_experts`` in files, and both since 5."""
    content = {"num_experts": content["num_local_experts"], **content}
    return MoEConfig(
        n_experts=hf.whole(content, "num_experts"),
        top_k=hf.whole(content, "num_experts_per_tok"),
        hidden_dim=hf.whole(content, "moe_intermediate_size"),
        renormalise=hf.flag(content, "norm_topk_prob"),
        batch_balance=hf.optional_number(content, "router_aux_loss_coef", most=1e3),
    )
