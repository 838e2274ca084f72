"""Llama 4 as transformers' ``Llama4ForCausalLM``, and as the language model of the published files,
``Llama4ForConditionalGeneration``. The experts of a layer are two tensors there, transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Entry, Fuse, Transpose, WeightTable, entry
from hekaton_blocks import MoEConfig
from hekaton_blocks.hugging_face import (
    ATTENTION,
    OURS,
    THEIRS,
    balance_tensors,
    check_experts,
    check_known,
    decoder_content,
    decoder_entries,
    decoder_fields,
    feed_forward_modules,
    flag,
    head_dim,
    key_heads,
    llama_scaling_content,
    module_entries,
    number,
    optional_number,
    whole,
    wholes,
)
from hekaton_llama4.model import Llama4Config

CONTEXT = 262_144
"""Positions in the published ``config.json`` of Scout."""
_KNOWN = {
    "attention_bias": (False,),
    "tie_word_embeddings": (False,),
    "hidden_act": ("silu", "swish"),  # two names of one function
    "router_jitter_noise": (0, None),
    "attention_dropout": (0, None),
}


def table(config: Llama4Config) -> WeightTable:
    """Names differ, and the layout of experts."""
    sparse = config.layers_with_experts
    dense = [layer for layer in range(config.n_layers) if layer not in sparse]
    return WeightTable(
        entries=[
            *decoder_entries(ATTENTION),
            *module_entries(feed_forward_modules("feed_forward", "feed_forward"), layers=dense),
            *([] if config.moe is None else _experts(config.moe, sparse)),
        ],
        layers=config.n_layers,
        own=balance_tensors(config.moe, layers=sparse),
        prefix="language_model.",
        others={"vision": ("vision_model.", "multi_modal_projector.")},
    )


def _experts(moe: MoEConfig, layers: range) -> list[Entry]:
    ours, theirs = f"{OURS}moe.experts.", f"{THEIRS}feed_forward.experts."
    modules = {"moe.router.gate": "feed_forward.router"}
    if moe.n_shared_experts:
        modules |= feed_forward_modules("moe.shared_experts", "feed_forward.shared_expert")
    fused = Fuse((moe.hidden_dim, moe.hidden_dim), dim=2)
    return [
        *module_entries(modules, layers=layers),
        entry((f"{ours}w1", f"{ours}w3"), f"{theirs}gate_up_proj", Transpose(), fused, layers=layers),
        entry(f"{ours}w2", f"{theirs}down_proj", Transpose(), layers=layers),
    ]


def write_config(config: Llama4Config) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for routing that transformers' model does not have.
    """
    return {
        "architectures": ["Llama4ForCausalLM"],
        **decoder_content(config, model_type="llama4_text", context=CONTEXT),
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size_mlp": config.hidden_dim,
        "rope_scaling": llama_scaling_content(config.rope_scaling),
        "moe_layers": list(config.layers_with_experts),
        "interleave_moe_layer_step": config.interleave_moe_layer_step,
        "no_rope_layers": [int(config.has_positions(layer)) for layer in range(config.n_layers)],
        "attention_chunk_size": config.attention_chunk_size,
        "layer_types": _layer_types(config),
        "use_qk_norm": config.qk_norm,
        "attn_temperature_tuning": config.attn_scale > 0,
        "attn_scale": config.attn_scale,
        "floor_scale": config.floor_scale,
        **({} if config.moe is None else _experts_content(config.moe)),
    }


def _experts_content(moe: MoEConfig) -> dict[str, Any]:
    plain = _routing(moe.n_experts, moe.top_k, moe.hidden_dim)
    check_experts(moe, plain, architecture="Llama4ForCausalLM")
    return {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.hidden_dim,
        "router_aux_loss_coef": moe.batch_balance,
    }


def _routing(n_experts: int, top_k: int, hidden_dim: int, **balance: Any) -> MoEConfig:
    """The only routing that transformers has."""
    return MoEConfig(
        n_experts=n_experts, top_k=top_k, hidden_dim=hidden_dim, n_shared_experts=1, score="sigmoid",
        weights_on_input=True, **balance,
    )  # fmt: skip


def read_config(content: Mapping[str, Any]) -> Llama4Config:
    """The configuration that ``config.json`` describes, with all values of the language model.

    :raises CheckpointError: for what this model cannot do, and what transformers does not read either.
    """
    check_known(content, _KNOWN, model="llama4")
    fields = decoder_fields(content, model="llama4", kinds=("default", "llama3"))
    step = _step(content, fields["n_layers"])
    experts = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
    balance = optional_number(content, "router_aux_loss_coef", most=1e3)
    chunk = content["attention_chunk_size"]
    config = Llama4Config(
        **fields,
        n_kv_heads=key_heads(content),
        head_dim=head_dim(content),
        hidden_dim=whole(content, "intermediate_size_mlp"),
        moe=_routing(*(whole(content, key) for key in experts), batch_balance=balance) if step else None,
        interleave_moe_layer_step=step or whole(content, "interleave_moe_layer_step"),
        every_n_layers_nope=_nope_interval(content, fields["n_layers"]),
        attention_chunk_size=None if chunk is None else whole(content, "attention_chunk_size"),
        qk_norm=flag(content, "use_qk_norm"),
        attn_scale=number(content, "attn_scale") if flag(content, "attn_temperature_tuning") else 0.0,
        floor_scale=whole(content, "floor_scale"),
    )
    listed = content["layer_types"]
    if listed is not None and listed != _layer_types(config):
        raise CheckpointError(
            f"layer_types = {listed!r}: in the model llama4 the layers with positions attend inside chunks, "
            "and the others do not"
        )
    return config


def _step(content: Mapping[str, Any], layers: int) -> int:
    """Each so-manieth layer has experts; 0 for none."""
    listed, step = wholes(content, "moe_layers"), whole(content, "interleave_moe_layer_step")
    if listed is None:
        return step
    step = min(listed) + 1 if listed else 0
    if listed != (list(range(step - 1, layers, step)) if step else []):
        raise CheckpointError(f"moe_layers = {listed!r}: the model llama4 has experts in each n-th layer")
    return step


def _nope_interval(content: Mapping[str, Any], layers: int) -> int:
    """Each so-manieth layer is without positions; 0 for none."""
    listed = wholes(content, "no_rope_layers")
    if not listed:
        return whole(content, "no_rope_layer_interval")
    with_positions = [bool(one) for one in listed[:layers]]
    interval = with_positions.index(False) + 1 if False in with_positions else 0
    if with_positions != [not interval or (layer + 1) % interval > 0 for layer in range(layers)]:
        raise CheckpointError(
            f"no_rope_layers = {listed!r}: in the model llama4 each n-th layer is without positions"
        )
    return interval


def _layer_types(config: Llama4Config) -> list[str]:
    chunks = (config.pattern(layer).chunk for layer in range(config.n_layers))
    return ["full_attention" if chunk is None else "chunked_attention" for chunk in chunks]
