"""Reading the values of a ``config.json`` that decoders have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hekaton.errors import CheckpointError
from hekaton_blocks.rope import RopeScaling, Scaling, YarnScaling

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
