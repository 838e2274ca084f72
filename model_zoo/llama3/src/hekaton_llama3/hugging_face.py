"""Llama 3 as transformers' ``LlamaForCausalLM``: names, rotary layout, ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import RotaryHalves, WeightTable, entry
from hekaton_blocks.hugging_face import (
    check_known,
    decoder_content,
    decoder_fields,
    flag,
    head_dim,
    key_heads,
    llama_scaling_content,
    whole,
)
from hekaton_llama3 import LLAMA_DEFAULTS
from hekaton_llama3.model import Llama3Config

LONG_CONTEXT, CONTEXT = 131_072, 8_192
"""Positions that Llama 3.1 and 3.2 were made for, and Llama 3."""
_KNOWN = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "tie_word_embeddings": (False, True),
}


def table(config: Llama3Config) -> WeightTable:
    """Ours has Meta's names and interleaved rotary layout, theirs the halves of GPT-NeoX."""
    ours, theirs = "layers.{i}.", "model.layers.{i}."
    entries = [
        entry("tok_embeddings.weight", "model.embed_tokens.weight"),
        entry(f"{ours}attention_norm.weight", f"{theirs}input_layernorm.weight"),
        entry(f"{ours}attention.wq.weight", f"{theirs}self_attn.q_proj.weight", RotaryHalves(config.n_heads)),
        entry(
            f"{ours}attention.wk.weight", f"{theirs}self_attn.k_proj.weight", RotaryHalves(config.n_kv_heads)
        ),
        entry(f"{ours}attention.wv.weight", f"{theirs}self_attn.v_proj.weight"),
        entry(f"{ours}attention.wo.weight", f"{theirs}self_attn.o_proj.weight"),
        entry(f"{ours}ffn_norm.weight", f"{theirs}post_attention_layernorm.weight"),
        entry(f"{ours}feed_forward.w1.weight", f"{theirs}mlp.gate_proj.weight"),
        entry(f"{ours}feed_forward.w2.weight", f"{theirs}mlp.down_proj.weight"),
        entry(f"{ours}feed_forward.w3.weight", f"{theirs}mlp.up_proj.weight"),
        entry("norm.weight", "model.norm.weight"),
    ]
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}
    if not tied:
        entries.append(entry("output.weight", "lm_head.weight"))
    old = f"{theirs}self_attn.rotary_emb.inv_freq"  # computed; older versions of transformers saved it
    return WeightTable(entries=entries, layers=config.n_layers, tied=tied, ignored=[old])


def write_config(config: Llama3Config) -> dict[str, Any]:
    """The content of ``config.json``."""
    context = CONTEXT if config.rope_scaling is None else LONG_CONTEXT
    return decoder_content(config, model_type="llama", context=context) | {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "mlp_bias": False,
        "rope_scaling": llama_scaling_content(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_config(content: Mapping[str, Any]) -> Llama3Config:
    """The configuration that ``config.json`` describes, written by transformers before 5 or since.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    content = {**LLAMA_DEFAULTS, **content}
    check_known(content, _KNOWN, model="llama3")
    config = Llama3Config(
        **decoder_fields(content, model="llama3", kinds=("default", "llama3")),
        n_kv_heads=key_heads(content),
        hidden_dim=whole(content, "intermediate_size"),
        tie_embeddings=flag(content, "tie_word_embeddings"),
    )
    if head_dim(content) * config.n_heads != config.dim:
        raise CheckpointError(
            f"head_dim = {content['head_dim']}: the model llama3 knows only hidden_size / num_attention_heads"
            f" = {config.head_dim}"
        )
    return config
