"""Rotary embeddings in a ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hekaton.errors import CheckpointError
from hekaton_blocks.hugging_face.values import flag, is_same, number, shown, whole
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
    rope = _object(content, "rope_scaling") or _object(content, "rope_parameters")
    rope = {
        "rope_theta": content["rope_theta"],
        "original_max_position_embeddings": content["max_position_embeddings"],
        "partial_rotary_factor": content.get("partial_rotary_factor"),
        **rope,
    }
    part = rope["partial_rotary_factor"]
    if not any(is_same(part, one) for one in (None, 1)):
        raise CheckpointError(
            f"partial_rotary_factor = {shown(part)}: the model {model} rotates all channels"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in kinds:
        known = " and ".join(map(repr, kinds))
        raise CheckpointError(f"rope_type = {shown(kind)}: the model {model} knows only {known}")
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
            raise CheckpointError(f"{key} = {shown(value)}: it has no meaning where rope_type = '{kind}'")


def _object(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; an empty one for ``null``."""
    value = content.get(key)
    if not isinstance(value, Mapping | None):
        raise CheckpointError(f"{key} = {shown(value)}: a JSON object was expected")
    return value or {}


def _yarn(rope: Mapping[str, Any], context: int) -> YarnScaling:
    if rope.get("attention_factor") is not None:
        given = rope["attention_factor"]
        raise CheckpointError(f"attention_factor = {shown(given)}: only mscale and mscale_all_dim are known")
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


def llama_scaling_content(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of ``rope_scaling``."""
    if scaling is None:
        return None
    return {"rope_type": "llama3", **{key: getattr(scaling, name) for name, key in ROPE_KEYS.items()}}


def yarn_content(scaling: YarnScaling) -> dict[str, Any]:
    """The value of ``rope_scaling``, apart from its type."""
    return {key: getattr(scaling, name) for name, key in YARN_KEYS.items()}
