"""What adapters of decoders have in common: values of a ``config.json``, and tensors that files lack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hekaton.config.base import shortened
from hekaton.errors import CheckpointError
from hekaton.weights import Entry, Op, Own, Unstack, entry
from hekaton_blocks.rope import RopeScaling, Scaling, YarnScaling
from hekaton_blocks.routing import MoEConfig
from hekaton_blocks.sizes import MAX_LAYERS

OURS, THEIRS = "layers.{i}.", "model.layers.{i}."
ATTENTION = {
    "attention_norm": "input_layernorm", "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
"""Modules of a layer with grouped-query attention, and their names in files."""
FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
ROPE_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
"""Field of :class:`RopeScaling` -> key of ``rope_scaling``."""
YARN_KEYS = {
    "factor": "factor",
    "original_context": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}
"""Field of :class:`YarnScaling` -> key of ``rope_scaling``."""


def rotary_of(
    content: Mapping[str, Any], *, model: str, kinds: Sequence[str] = ("default",)
) -> tuple[float, Scaling]:
    """Base and scaling of the rotary embedding.

    As in transformers, ``rope_scaling`` counts where it says something, ``rope_parameters`` otherwise, and a
    value missing there stands beside it.

    :param content: with the model's defaults; ``rope_theta`` and ``max_position_embeddings`` are read.
    :param model: its name, for messages.
    :param kinds: the values of ``rope_type`` that the model knows, of ``default``, ``llama3`` and ``yarn``.
    :raises CheckpointError: for anything else.
    """
    rope = _object(content, "rope_scaling") or _object(content, "rope_parameters")
    rope = {
        "rope_theta": content["rope_theta"],
        "original_max_position_embeddings": content["max_position_embeddings"],
        "partial_rotary_factor": content.get("partial_rotary_factor"),
        **rope,
    }
    part = rope["partial_rotary_factor"]
    if not any(_is_same(part, one) for one in (None, 1)):
        raise CheckpointError(
            f"partial_rotary_factor = {_shown(part)}: the model {model} rotates all channels"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        known = " and ".join(map(repr, kinds))
        raise CheckpointError(f"rope_type = {_shown(kind)}: the model {model} knows only {known}")
    _check_rope_keys(rope, kind)
    if kind == "default":
        return number(rope, "rope_theta"), None
    context = whole(rope, "original_max_position_embeddings")
    if kind == "yarn":
        return number(rope, "rope_theta"), _yarn(rope, context)
    scaling = RopeScaling(
        **{name: number(rope, ROPE_KEYS[name]) for name in ROPE_KEYS if name != "original_context"},
        original_context=context,
    )
    return number(rope, "rope_theta"), scaling


def _check_rope_keys(rope: Mapping[str, Any], kind: str) -> None:
    """:raises CheckpointError: for a value that the kind of scaling has no meaning for."""
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings"}
    known |= {"llama3": {*ROPE_KEYS.values()}, "yarn": {*YARN_KEYS.values(), "attention_factor"}}.get(
        kind, set()
    )
    for key, value in rope.items():
        if value is not None and key not in known:
            raise CheckpointError(f"{key} = {_shown(value)}: it has no meaning where rope_type = '{kind}'")


def _object(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; an empty one for ``null``."""
    value = content.get(key)
    if not isinstance(value, Mapping | None):
        raise CheckpointError(f"{key} = {_shown(value)}: a JSON object was expected")
    return value or {}


def _yarn(rope: Mapping[str, Any], context: int) -> YarnScaling:
    if rope.get("attention_factor") is not None:
        given = rope["attention_factor"]
        raise CheckpointError(f"attention_factor = {_shown(given)}: only mscale and mscale_all_dim are known")
    rope = {key: value for key, value in rope.items() if value is not None}
    if ("mscale" in rope) != ("mscale_all_dim" in rope):
        raise CheckpointError("of mscale and mscale_all_dim there must be both or none")
    given = [name for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if name in rope]
    return YarnScaling(
        factor=number(rope, "factor"),
        original_context=context,
        truncate=flag({"truncate": True, **rope}, "truncate"),
        **{name: number(rope, name) for name in given},
    )


LARGEST = 2**31 - 1
"""Of whole numbers: no size of a model is larger, and products of two fit 64 bits."""


def whole(content: Mapping[str, Any], key: str, *, least: int = 1, most: int = LARGEST) -> int:
    """:raises CheckpointError: for a value that is no whole number from ``least`` to ``most``."""
    return _whole(content.get(key), key, least=least, most=most)


def _whole(value: Any, what: str, *, least: int, most: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        bound = f"above {least - 1}" if least else "of at least 0"
        if isinstance(value, int) and value > most:
            bound += f" and at most {most:,}"
        raise CheckpointError(f"{what} = {_shown(value)}: a whole number {bound} was expected")
    return value


def layer_count(content: Mapping[str, Any]) -> int:
    """:raises CheckpointError: for a number of layers that no model has."""
    return whole(content, "num_hidden_layers", most=MAX_LAYERS)


def wholes(content: Mapping[str, Any], key: str, *, least: int = 0) -> list[int] | None:
    """A list of whole numbers, ``None`` for ``null``.

    :raises CheckpointError: for anything else.
    """
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list):
        raise CheckpointError(f"{key} = {_shown(value)}: a list of whole numbers was expected")
    return [_whole(one, f"{key}[{index}]", least=least) for index, one in enumerate(value)]


def step_of(numbers: Sequence[int], layers: int) -> int | None:
    """``n``, where these are each ``n``-th of so many layers; 0 where there are none, ``None`` where they are
    others."""
    step = min(numbers) + 1 if numbers else 0
    return step if list(numbers) == list(range(step - 1, layers, step) if step else ()) else None


def number(content: Mapping[str, Any], key: str, *, most: float = 1e30) -> float:
    """:raises CheckpointError: for a value that is no number above 0 and up to ``most``."""
    value: Any = content.get(key)
    if not _is_number(value) or not 0 < value <= most:
        bound = f" and at most {most:g}" if _is_number(value) and value > most else ""
        raise CheckpointError(f"{key} = {_shown(value)}: a number above 0{bound} was expected")
    return float(value)


def optional_number(content: Mapping[str, Any], key: str, *, most: float = 1e30) -> float:
    """Like :func:`number`, and 0 for ``null`` or 0."""
    value = content.get(key)
    return 0.0 if value is None or (_is_number(value) and value == 0) else number(content, key, most=most)


def flag(content: Mapping[str, Any], key: str) -> bool:
    """:raises CheckpointError: for a value that is neither ``true`` nor ``false``."""
    value = content.get(key)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} = {_shown(value)}: true or false was expected")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value, not longer than a line."""
    return shortened(repr(value), 80)


def decoder_content(config: Any, *, model_type: str, context: int) -> dict[str, Any]:
    """The keys of ``config.json`` that every decoder has.

    Where more is known of the model that is exported, its positions and special tokens take the place of
    those here: the published model's, and none.

    :param context: positions of the published model.
    """
    return {
        "model_type": model_type,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def llama_scaling_content(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of ``rope_scaling``."""
    if scaling is None:
        return None
    return {"rope_type": "llama3", **{key: getattr(scaling, name) for name, key in ROPE_KEYS.items()}}


def check_known(content: Mapping[str, Any], known: Mapping[str, Sequence[Any]], *, model: str) -> None:
    """:param known: key -> the values that the model has a meaning for; a key that is missing says nothing.

    :raises CheckpointError: for another value.
    """
    for key, values in known.items():
        if key in content and not any(_is_same(content[key], value) for value in values):
            said, wanted = _shown(content[key]), _shown(values[0])
            raise CheckpointError(f"{key} = {said}: the model {model} knows only {wanted}")


def _is_same(one: Any, other: Any) -> bool:
    """Equal, and of one type: 0 is not ``false``, but 0 is 0.0."""
    return bool(one == other) and (type(one) is type(other) or (_is_number(one) and _is_number(other)))


def decoder_fields(
    content: Mapping[str, Any], *, model: str, kinds: Sequence[str] = ("default",)
) -> dict[str, Any]:
    """The fields of a configuration that every decoder has; for the parameters see :func:`rotary_of`.

    :raises CheckpointError: for values that no model has.
    """
    theta, scaling = rotary_of(content, model=model, kinds=kinds)
    return {
        "dim": whole(content, "hidden_size"),
        "n_layers": layer_count(content),
        "n_heads": whole(content, "num_attention_heads"),
        "vocab_size": whole(content, "vocab_size"),
        "norm_eps": number(content, "rms_norm_eps", most=1),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def key_heads(content: Mapping[str, Any]) -> int:
    """Heads of keys and values: as many as of queries where the file says ``null``."""
    shared = content["num_key_value_heads"] is not None
    return whole(content, "num_key_value_heads" if shared else "num_attention_heads")


def head_dim(content: Mapping[str, Any]) -> int:
    """Channels of a head: ``hidden_size / num_attention_heads`` where the file says ``null``."""
    if content["head_dim"] is not None:
        return whole(content, "head_dim")
    return whole(content, "hidden_size") // whole(content, "num_attention_heads")


def check_experts(experts: MoEConfig, plain: MoEConfig, *, architecture: str) -> None:
    """:param plain: experts of the only kind that the architecture has.

    :raises CheckpointError: where these, apart from how they are trained, are others.
    """
    plain = replace(
        plain,
        bias_rate=experts.bias_rate,
        sequence_balance=experts.sequence_balance,
        batch_balance=experts.batch_balance,
    )
    lines = [
        f"moe.{name} = {value!r}, there it is {vars(plain)[name]!r}"
        for name, value in vars(experts).items()
        if value != vars(plain)[name]
    ]
    if lines:
        raise CheckpointError(
            f"{architecture} of transformers does not compute what this model does", hint="\n".join(lines)
        )


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


def feed_forward_modules(ours: str, theirs: str) -> dict[str, str]:
    """The modules of a feed-forward layer, by its names here and in files."""
    return {f"{ours}.{name}": f"{theirs}.{there}" for name, there in FEED_FORWARD.items()}


def separate_experts(
    n_experts: int, *, layers: Collection[int] | None = None, ours: str = OURS
) -> list[Entry]:
    """The entries of experts that are stacked here, and a tensor each in files.

    :param layers: those with experts; ``None`` for all.
    """
    return [
        entry(
            f"{ours}moe.experts.{name}",
            f"{THEIRS}mlp.experts.{{e}}.{there}.weight",
            Unstack(n_experts),
            layers=layers,
        )
        for name, there in FEED_FORWARD.items()
    ]


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
