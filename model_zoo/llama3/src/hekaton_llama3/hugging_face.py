"""Llama 3 as transformers' ``LlamaForCausalLM``: names, rotary layout, ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import RotaryHalves, WeightTable
from hekaton_blocks import hugging_face as hf
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
    of_layers = hf.ATTENTION | hf.feed_forward_modules("feed_forward", "mlp")
    rotary = {"attention.wq": config.n_heads, "attention.wk": config.n_kv_heads}
    ops = {name: RotaryHalves(heads) for name, heads in rotary.items()}
    # Computed; older versions of transformers saved it.
    frequencies = "model.layers.{i}.self_attn.rotary_emb.inv_freq"
    return WeightTable(
        entries=hf.decoder_entries(of_layers, ops=ops, tied=config.tie_embeddings),
        layers=config.n_layers,
        tied=hf.tied_output(config.tie_embeddings),
        ignored=[frequencies],
    )


def write_config(config: Llama3Config) -> dict[str, Any]:
    """The content of ``config.json``."""
    context = CONTEXT if config.rope_scaling is None else LONG_CONTEXT
    return hf.decoder_content(config, model_type="llama", context=context) | {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "mlp_bias": False,
        "rope_scaling": hf.llama_scaling_content(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_config(content: Mapping[str, Any]) -> Llama3Config:
    """The configuration that ``config.json`` describes, written by transformers before 5 or since.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    content = {**LLAMA_DEFAULTS, **content}
    hf.check_known(content, _KNOWN, model="llama3")
    config = Llama3Config(
        **hf.decoder_fields(content, model="llama3", kinds=("default", "llama3")),
        n_kv_heads=hf.key_heads(content),
        hidden_dim=hf.whole(content, "intermediate_size"),
        tie_embeddings=hf.flag(content, "tie_word_embeddings"),
    )
    if hf.head_dim(content) * config.n_heads != config.dim:
        raise CheckpointError(
            f"head_dim = {content['head_dim']}: the model llama3 knows only hidden_size / num_attention_heads"
            f" = {config.head_dim}"
        )
    return config
