"""Qwen 3 as transformers' ``Qwen3ForCausalLM``: names and ``config.json``; layouts are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import WeightTable, row
from hekaton_blocks.hugging_face import number, rotary_of, whole
from hekaton_qwen3 import QWEN3_DEFAULTS
from hekaton_qwen3.model import Qwen3Config

CONTEXT = 40_960
"""Positions in the published ``config.json`` of the dense models."""
_KNOWN = {
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "tie_word_embeddings": (False, True),
}


def table(config: Qwen3Config) -> WeightTable:
    """Names alone differ."""
    ours, theirs = "layers.{i}.", "model.layers.{i}."
    names = {
        "attention_norm": "input_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    rows = [
        row("tok_embeddings.weight", "model.embed_tokens.weight"),
        *(row(f"{ours}{name}.weight", f"{theirs}{there}.weight") for name, there in names.items()),
        row("norm.weight", "model.norm.weight"),
    ]
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    if not tied:
        rows.append(row("output.weight", "lm_head.weight"))
    return WeightTable(rows=rows, layers=config.n_layers, tied=tied)


def write_config(config: Qwen3Config) -> dict[str, Any]:
    """The content of ``config.json``. Where more is known of the model that is exported, its positions and
    special tokens take the place of those here: the published model's, and none."""
    return {
        "model_type": "qwen3",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_config(content: Mapping[str, Any]) -> Qwen3Config:
    """The configuration that ``config.json`` describes, written by transformers before 5 or since.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    content = {**QWEN3_DEFAULTS, **content}
    for key, known in _KNOWN.items():
        if content[key] not in known:
            raise CheckpointError(f"{key} = {content[key]!r}: the model qwen3 knows only {known[0]!r}")
    theta, _ = rotary_of(content, model="qwen3")
    heads = whole(content, "num_attention_heads")
    shared = content["num_key_value_heads"] is not None
    return Qwen3Config(
        dim=whole(content, "hidden_size"),
        n_layers=whole(content, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=whole(content, "num_key_value_heads") if shared else heads,
        head_dim=whole(content, "head_dim"),
        hidden_dim=whole(content, "intermediate_size"),
        vocab_size=whole(content, "vocab_size"),
        norm_eps=number(content, "rms_norm_eps"),
        rope_theta=theta,
        tie_embeddings=bool(content["tie_word_embeddings"]),
    )
