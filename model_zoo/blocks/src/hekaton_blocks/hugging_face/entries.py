"""Entries of weight tables that decoders have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from hekaton.weights import Entry, Op, Own, Unstack, WeightTable, entry
from hekaton_blocks.routing import MoEConfig

OURS, THEIRS = "layers.{i}.", "model.layers.{i}."
ATTENTION = {
    "attention_norm": "input_layernorm", "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
"""Modules of a layer with grouped-query attention, and their names in files."""
LATENT_ATTENTION = {
    "wq": "q_proj", "wq_a": "q_a_proj", "q_norm": "q_a_layernorm", "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj", "wo": "o_proj",
}  # fmt: skip
"""Modules of latent attention, and their names in files."""
FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def decoder_entries(
    of_layers: Mapping[str, str],
    *,
    ops: Mapping[str, Op] | None = None,
    layers: Collection[int] | None = None,
    tied: bool = False,
) -> list[Entry]:
    """The entries of a decoder's ends, and of modules of its layers; see :func:`module_entries`.

    :param tied: whether the output is the embedding.
    """
    return [
        entry("tok_embeddings.weight", "model.embed_tokens.weight"),
        *module_entries(of_layers, ops=ops, layers=layers),
        entry("norm.weight", "model.norm.weight"),
        *([] if tied else [entry("output.weight", "lm_head.weight")]),
    ]


def module_entries(
    of_layers: Mapping[str, str],
    *,
    ops: Mapping[str, Op] | None = None,
    layers: Collection[int] | None = None,
    ours: str = OURS,
) -> list[Entry]:
    """The entries of modules of layers.

    :param of_layers: module -> its name in files, each without its ``.weight``.
    :param ops: module -> what makes theirs from ours.
    :param layers: those that have them; ``None`` for all.
    """
    ops = ops or {}
    return [
        entry(
            f"{ours}{name}.weight",
            f"{THEIRS}{there}.weight",
            *([ops[name]] if name in ops else []),
            layers=layers,
        )
        for name, there in of_layers.items()
    ]


def tied_output(tied: bool) -> dict[str, str]:
    """For ``WeightTable.tied``."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}


def latent_attention_modules(q_lora_rank: int) -> dict[str, str]:
    """The modules of a layer with latent attention, as :data:`ATTENTION` has those of others."""
    without = {"wq"} if q_lora_rank else {"wq_a", "q_norm", "wq_b"}
    own = {
        f"attention.{name}": f"self_attn.{there}"
        for name, there in LATENT_ATTENTION.items()
        if name not in without
    }
    return {"attention_norm": "input_layernorm", **own, "ffn_norm": "post_attention_layernorm"}


def feed_forward_modules(ours: str, theirs: str) -> dict[str, str]:
    """The modules of a feed-forward layer, by its names here and in files."""
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in FEED_FORWARD.items()}


def separate_experts(
    experts: MoEConfig, *, layers: Collection[int] | None = None, ours: str = OURS, bias: str = ""
) -> list[Entry]:
    """The entries of a layer of experts that are stacked here, and a tensor each in files.

    :param layers: those with experts; ``None`` for all.
    :param bias: the name of the expert bias in files; empty where they lack it, see :func:`balance_tensors`.
    """
    modules = {"moe.router.gate": "mlp.gate"}
    if experts.n_shared_experts:
        modules |= feed_forward_modules("moe.shared_experts", "mlp.shared_experts")
    entries = module_entries(modules, layers=layers, ours=ours)
    for name, there in FEED_FORWARD.items():
        theirs, op = f"{THEIRS}mlp.experts.{{e}}.{there}.weight", Unstack(experts.n_experts)
        entries.append(entry(f"{ours}moe.experts.{name}", theirs, op, layers=layers))
    if bias and experts.bias_rate is not None:
        entries.append(entry(f"{ours}moe.expert_bias", f"{THEIRS}mlp.{bias}", layers=layers))
    return entries


def balance_tensors(
    experts: MoEConfig | None,
    *,
    layers: Collection[int] | None = None,
    bias: bool = True,
    prefix: str = "layers.{i}.",
) -> list[Own]:
    """The buffers of a layer of experts that files do not have, for a table.

    :param layers: those with experts; ``None`` for all.
    :param bias: whether files lack the expert bias as well.
    """
    own = []
    if experts is not None:
        shape = (experts.n_experts,)
        if bias and experts.bias_rate is not None:
            own.append(Own(name=f"{prefix}moe.expert_bias", shape=shape, value=0.0, layers=layers))
        if experts.batch_balance:
            own.append(Own(name=f"{prefix}moe.load", shape=shape, value=1.0, layers=layers, always=False))
    return own


SECOND_TOKEN = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "norm": "shared_head.norm"}
"""Modules of :class:`hekaton_blocks.MultiTokenLayer` beside those of a layer, and their names in files."""
SECOND_TOKEN_COPIES = {"embed_tokens": "model.embed_tokens.weight", "shared_head.head": "lm_head.weight"}
"""In files of such a layer, what repeats a tensor of the model."""
OF_SECOND_TOKEN = "mtp_layers.{i}."


def with_second_token(
    table: WeightTable, of_layer: Sequence[Entry], *, experts: MoEConfig, trained: bool
) -> WeightTable:
    """A table of files that have a layer for a second token, as published for DeepSeek V3: the one after the
    last, with copies of the embedding and the output.

    :param of_layer: the entries of what such a layer has as the others do, ours under ``OF_SECOND_TOKEN``.
    :param experts: the layer's.
    :param trained: whether the model has that layer; otherwise a notice names it.
    """
    number = table.layers
    own_modules = module_entries(SECOND_TOKEN, layers=[number], ours=OF_SECOND_TOKEN)
    further = replace(table, entries=[*of_layer, *own_modules], layers=number + 1)
    copies = {f"model.layers.{number}.{name}.weight": of for name, of in SECOND_TOKEN_COPIES.items()}
    if not trained:
        part = f"multi-token prediction (model.layers.{number})"
        return replace(table, left_out={part: {*copies, *further.hf_names()}})
    own = balance_tensors(experts, layers=[number], bias=False, prefix=OF_SECOND_TOKEN)
    return replace(further, entries=[*table.entries, *further.entries], tied=copies, own=[*table.own, *own])
