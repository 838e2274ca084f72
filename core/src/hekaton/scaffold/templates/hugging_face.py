"""The model as transformers' ``LlamaForCausalLM``: one table of names for both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.scaffold.templates.model import DecoderConfig
from hekaton.weights import WeightTable, entry

_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def table(config: DecoderConfig) -> WeightTable:
    """Which tensor is which. Where shapes or orders differ, an entry has ops (``hekaton.weights.ops``)."""
    of_layers = [
        entry(f"layers.{{i}}.{ours}.weight", f"model.layers.{{i}}.{theirs}.weight")
        for ours, theirs in _LAYER.items()
    ]
    return WeightTable(
        entries=[
            entry("tok_embeddings.weight", "model.embed_tokens.weight"),
            *of_layers,
            entry("norm.weight", "model.norm.weight"),
            entry("output.weight", "lm_head.weight"),
        ],
        layers=config.n_layers,
    )


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """The content of ``config.json``."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def read_config(content: Mapping[str, Any]) -> DecoderConfig:
    """The configuration that ``config.json`` describes.

    :raises CheckpointError: for what this model cannot do.
    """
    heads = content["num_attention_heads"]
    only = {
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    }
    for key, value in only.items():
        if content.get(key, value) != value:
            raise CheckpointError(f"{key} = {content[key]!r}: this model knows only {value!r}")
    return DecoderConfig(
        dim=content["hidden_size"],
        n_layers=content["num_hidden_layers"],
        n_heads=heads,
        hidden_dim=content["intermediate_size"],
        vocab_size=content["vocab_size"],
        rope_theta=content["rope_theta"],
        norm_eps=content["rms_norm_eps"],
    )
