"""Llama 4 as transformers' ``Llama4ForCausalLM``, and as the language model of the published files,
``Llama4ForConditionalGeneration``. The experts of a layer are two tensors there, transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Entry, Fuse, Transpose, WeightTable, entry
from hekaton_blocks import MoEConfig
from hekaton_blocks import hugging_face as hf
from hekaton_llama4.model import Llama4Config

CONTEXT = 262_144
"""Positions in the published ``config.json`` of Scout."""
_KNOWN = {
    "attention_bias": (False,), "tie_word_embeddings": (False,), "router_jitter_noise": (0, None),
    "attention_dropout": (0, None), "hidden_act": ("silu", "swish"),
}  # fmt: skip


def table(config: Llama4Config) -> WeightTable:
    """Names differ, and the layout of experts."""
    sparse = config.layers_with_experts
    dense = [layer for layer in range(config.n_layers) if layer not in sparse]
    return WeightTable(
        entries=[
            *hf.decoder_entries(hf.ATTENTION),
            *hf.module_entries(hf.feed_forward_modules("feed_forward", "feed_forward"), layers=dense),
            *([] if config.moe is None else _experts(config.moe, sparse)),
        ],
        layers=config.n_layers,
        own=hf.balance_tensors(config.moe, layers=sparse),
        prefix="language_model.",
        others={"vision": ("vision_model.", "multi_modal_projector.")},
    )


def _experts(moe: MoEConfig, layers: range) -> list[Entry]:
    ours, theirs = f"{hf.OURS}moe.experts.", f"{hf.THEIRS}feed_forward.experts."
    modules = {"moe.router.gate": "feed_forward.router"}
    if moe.n_shared_experts:
        modules |= hf.feed_forward_modules("moe.shared_experts", "feed_forward.shared_expert")
    fused = Fuse((moe.hidden_dim, moe.hidden_dim), dim=2)
    return [
        *hf.module_entries(modules, layers=layers),
        entry((f"{ours}w1", f"{ours}w3"), f"{theirs}gate_up_proj", Transpose(), fused, layers=layers),
        entry(f"{ours}w2", f"{theirs}down_proj", Transpose(), layers=layers),
    ]


def write_config(config: Llama4Config) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for routing that transformers' model does not have.
    """
    return {
        "architectures": ["Llama4ForCausalLM"],
        **hf.decoder_content(config, model_type="llama4_text", context=CONTEXT),
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size_mlp": config.hidden_dim,
        "rope_scaling": hf.llama_scaling_content(config.rope_scaling),
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
    hf.check_experts(moe, vars(plain), architecture="Llama4ForCausalLM")
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
    hf.check_known(content, _KNOWN, model="llama4")
    fields = hf.decoder_fields(content, model="llama4", kinds=("default", "llama3"))
    step = _step(content, fields["n_layers"])
    experts = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
    balance = hf.optional_number(content, "router_aux_loss_coef", most=1e3)
    chunk = content["attention_chunk_size"]
    config = Llama4Config(
        **fields,
        n_kv_heads=hf.key_heads(content),
        head_dim=hf.head_dim(content),
        hidden_dim=hf.whole(content, "intermediate_size_mlp"),
        moe=_routing(*(hf.whole(content, key) for key in experts), batch_balance=balance) if step else None,
        interleave_moe_layer_step=step or hf.whole(content, "interleave_moe_layer_step"),
        every_n_layers_nope=_nope_interval(content, fields["n_layers"]),
        attention_chunk_size=None if chunk is None else hf.whole(content, "attention_chunk_size"),
        qk_norm=hf.flag(content, "use_qk_norm"),
        attn_scale=hf.number(content, "attn_scale") if hf.flag(content, "attn_temperature_tuning") else 0.0,
        floor_scale=hf.whole(content, "floor_scale"),
    )
    listed = content["layer_types"]
    if listed is not None and listed != _layer_types(config):
        raise CheckpointError(
            f"layer_types = {listed!r}: in the model llama4 the layers with positions attend inside chunks, "
            "and the others do not"
        )
    return config


def _step(content: Mapping[str, Any], layers: int) -> int:
    """Every n-th layer has experts; 0 for none."""
    listed, step = hf.wholes(content, "moe_layers"), hf.whole(content, "interleave_moe_layer_step")
    found = step if listed is None else hf.step_of(listed, layers)
    if found is None:
        raise CheckpointError(f"moe_layers = {listed!r}: the model llama4 has experts in each n-th layer")
    return found


def _nope_interval(content: Mapping[str, Any], layers: int) -> int:
    """Every n-th layer is without positions; 0 for none."""
    listed = hf.wholes(content, "no_rope_layers")
    if not listed:
        return hf.whole(content, "no_rope_layer_interval")
    without = [layer for layer, positions in enumerate(listed[:layers]) if not positions]
    interval = hf.step_of(without, layers) if len(listed) >= layers else None
    if interval is None:
        raise CheckpointError(
            f"no_rope_layers = {listed!r}: in the model llama4 each n-th layer is without positions"
        )
    return interval


def _layer_types(config: Llama4Config) -> list[str]:
    chunks = (config.pattern(layer).chunk for layer in range(config.n_layers))
    return ["full_attention" if chunk is None else "chunked_attention" for chunk in chunks]
