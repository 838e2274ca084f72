"""What a ``config.json`` says of every decoder, and of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hekaton.errors import CheckpointError
from hekaton_blocks.hugging_face.rotary import rotary_of
from hekaton_blocks.hugging_face.values import layer_count, number, whole
from hekaton_blocks.routing import MoEConfig

TRAINING = ("bias_rate", "sequence_balance", "batch_balance")
"""Fields of experts that say how they are trained, not what they compute."""


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


def check_experts(
    experts: MoEConfig, wanted: Mapping[str, Any], *, architecture: str, biased: bool | None = None
) -> None:
    """:param wanted: field -> its only value in the architecture; how experts are trained may be anything.
    :param biased: whether there is a bias for the choice of experts; ``None``: either way, being 0.

    :raises CheckpointError: where these experts are others.
    """
    lines = [
        f"moe.{name} = {getattr(experts, name)!r}, there it is {value!r}"
        for name, value in wanted.items()
        if name not in TRAINING and getattr(experts, name) != value
    ]
    if biased is not None and (experts.bias_rate is not None) != biased:
        lines.append(f"moe.bias_rate = {experts.bias_rate}, there is {'a' if biased else 'no'} bias")
    if lines:
        raise CheckpointError(
            f"{architecture} of transformers does not compute what this model does", hint="\n".join(lines)
        )
