"""What adapters of decoders have in common: values of a ``config.json``, and tensors that files lack."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Own
from hekaton_blocks.rope import RopeScaling, Scaling, YarnScaling
from hekaton_blocks.routing import MoEConfig

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
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"rope_parameters = {rope!r}: a JSON object was expected")
    rope = {
        "rope_theta": content["rope_theta"],
        "original_max_position_embeddings": content["max_position_embeddings"],
        "partial_rotary_factor": content.get("partial_rotary_factor"),
        **rope,
    }
    if rope["partial_rotary_factor"] not in (None, 1):
        part = rope["partial_rotary_factor"]
        raise CheckpointError(f"partial_rotary_factor = {part!r}: the model {model} rotates all channels")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        known = " and ".join(map(repr, kinds))
        raise CheckpointError(f"rope_type = {kind!r}: the model {model} knows only {known}")
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


def _yarn(rope: Mapping[str, Any], context: int) -> YarnScaling:
    if rope.get("attention_factor") is not None:
        given = rope["attention_factor"]
        raise CheckpointError(f"attention_factor = {given!r}: only mscale and mscale_all_dim are known")
    rope = {key: value for key, value in rope.items() if value is not None}
    if ("mscale" in rope) != ("mscale_all_dim" in rope):
        raise CheckpointError("of mscale and mscale_all_dim there must be both or none")
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise CheckpointError(f"truncate = {truncate!r}: true or false was expected")
    given = [name for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim") if name in rope]
    return YarnScaling(
        factor=number(rope, "factor"),
        original_context=context,
        truncate=truncate,
        **{name: number(rope, name) for name in given},
    )


def whole(content: Mapping[str, Any], key: str) -> int:
    """:raises CheckpointError: for a value that is no whole number above 0."""
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{key} = {value!r}: a whole number above 0 was expected")
    return value


def number(content: Mapping[str, Any], key: str) -> float:
    """:raises CheckpointError: for a value that is no finite number above 0."""
    value = content.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise CheckpointError(f"{key} = {value!r}: a number above 0 was expected")
    return float(value)


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
        if key in content and content[key] not in values:
            raise CheckpointError(f"{key} = {content[key]!r}: the model {model} knows only {values[0]!r}")


def decoder_fields(
    content: Mapping[str, Any], *, model: str, kinds: Sequence[str] = ("default",)
) -> dict[str, Any]:
    """The fields of a configuration that every decoder has; for the parameters see :func:`rotary_of`.

    :raises CheckpointError: for values that no model has.
    """
    theta, scaling = rotary_of(content, model=model, kinds=kinds)
    return {
        "dim": whole(content, "hidden_size"),
        "n_layers": whole(content, "num_hidden_layers"),
        "n_heads": whole(content, "num_attention_heads"),
        "vocab_size": whole(content, "vocab_size"),
        "norm_eps": number(content, "rms_norm_eps"),
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


def optional_number(content: Mapping[str, Any], key: str) -> float:
    """Like :func:`number`, and 0 for ``null`` or 0."""
    return number(content, key) if content[key] else 0.0


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


def balance_tensors(
    experts: MoEConfig | None, *, layers: range | None = None, bias: bool = True, prefix: str = "layers.{i}."
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
