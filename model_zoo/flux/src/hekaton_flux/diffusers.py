"""FLUX.1 as diffusers' ``FluxTransformer2DModel``, and as the single file that it was published in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hekaton.errors import CheckpointError
from hekaton.weights import Fuse, Inverse, WeightTable, entry
from hekaton.weights.lazy import LazyTensor
from hekaton.weights.ops import Tensors
from hekaton.weights.table import Entry
from hekaton_flux.model import FluxConfig

_ENDS = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
}  # fmt: skip
_GUIDANCE = {
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear", "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear", "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
}  # fmt: skip
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
}  # fmt: skip
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

# Of the published config.json files, and of diffusers' class where one leaves something out.
_SIZES = {
    "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
    "in_channels": 64, "joint_attention_dim": 4_096, "pooled_projection_dim": 768,
}  # fmt: skip
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "_class_name": ("FluxTransformer2DModel",), "patch_size": (1,), "out_channels": (None,),
}  # fmt: skip
_LARGEST = 2**20
"""No size of a published model comes near it; what is larger is a damaged file."""


@dataclass(frozen=True)
class Reversed:
    """The tensors of an entry in the other order; its own inverse."""

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        return list(reversed(ours))

    from_hf = to_hf


def table(config: FluxConfig) -> WeightTable:
    """diffusers has queries, keys and values apart, and the scale of the last modulation before its shift."""
    dim, hidden = config.dim, config.hidden_dim
    apart = Inverse(Fuse((dim, dim, dim)))
    halves = Fuse((dim, dim))
    double, single = range(config.n_double_blocks), range(config.n_single_blocks)
    ours, theirs = "double_blocks.{i}.", "transformer_blocks.{i}."
    one, other = "single_blocks.{i}.", "single_transformer_blocks.{i}."
    entries: list[Entry] = []
    for kind in ("weight", "bias"):
        ends = {**_ENDS, **(_GUIDANCE if config.guidance else {})}
        entries += [entry(f"{name}.{kind}", f"{there}.{kind}") for name, there in ends.items()]
        entries.append(
            entry(
                f"final_layer.adaLN_modulation.1.{kind}",
                f"norm_out.linear.{kind}",
                Inverse(halves),
                Reversed(),
                halves,
            )
        )
        entries += [
            entry(f"{ours}{name}.{kind}", f"{theirs}{there}.{kind}", layers=double)
            for name, there in _DOUBLE.items()
        ]
        for stream, names in {"img": "to_{}", "txt": "add_{}_proj"}.items():
            qkv = tuple(f"{theirs}attn.{names.format(letter)}.{kind}" for letter in "qkv")
            entries.append(entry(f"{ours}{stream}_attn.qkv.{kind}", qkv, apart, layers=double))
        entries += [
            entry(f"{one}{name}.{kind}", f"{other}{there}.{kind}", layers=single)
            for name, there in _SINGLE.items()
        ]
        both = (*(f"{other}attn.to_{letter}.{kind}" for letter in "qkv"), f"{other}proj_mlp.{kind}")
        fused = Inverse(Fuse((dim, dim, dim, hidden)))
        entries.append(entry(f"{one}linear1.{kind}", both, fused, layers=single))
    entries += [
        entry(f"{ours}{name}.weight", f"{theirs}{there}.weight", layers=double)
        for name, there in _DOUBLE_NORMS.items()
    ]
    entries += [
        entry(f"{one}{name}.weight", f"{other}{there}.weight", layers=single)
        for name, there in _SINGLE_NORMS.items()
    ]
    return WeightTable(entries=entries, layers=max(len(double), len(single)))


def single_file_table(config: FluxConfig) -> WeightTable:
    """The published single file (``flux1-dev.safetensors``): our names, and ``scale`` for a norm's weight."""
    ends = [*_ENDS, *(_GUIDANCE if config.guidance else ()), "final_layer.adaLN_modulation.1"]
    double, single = range(config.n_double_blocks), range(config.n_single_blocks)
    repeated = [
        (f"double_blocks.{{i}}.{name}", double) for name in (*_DOUBLE, "img_attn.qkv", "txt_attn.qkv")
    ]
    repeated += [(f"single_blocks.{{i}}.{name}", single) for name in (*_SINGLE, "linear1")]
    norms = [(f"double_blocks.{{i}}.{name}", double) for name in _DOUBLE_NORMS]
    norms += [(f"single_blocks.{{i}}.{name}", single) for name in _SINGLE_NORMS]
    kinds = ("weight", "bias")
    return WeightTable(
        entries=[
            *(entry(f"{name}.{kind}", f"{name}.{kind}") for name in ends for kind in kinds),
            *(
                entry(f"{name}.{kind}", f"{name}.{kind}", layers=layers)
                for name, layers in repeated
                for kind in kinds
            ),
            *(entry(f"{name}.weight", f"{name}.scale", layers=layers) for name, layers in norms),
        ],
        layers=max(len(double), len(single)),
    )


def write_config(config: FluxConfig) -> dict[str, Any]:
    """The content of ``config.json``.

    :raises CheckpointError: for what diffusers' model cannot do.
    """
    if config.hidden_dim_factor != 4 or config.rope_theta != 10_000.0:
        raise CheckpointError(
            "FluxTransformer2DModel has hidden_dim_factor = 4 and rope_theta = 10000, not "
            f"{config.hidden_dim_factor} and {config.rope_theta:g}"
        )
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": config.channels,
        "out_channels": None,
        "num_layers": config.n_double_blocks,
        "num_single_layers": config.n_single_blocks,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.n_heads,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "guidance_embeds": config.guidance,
        "axes_dims_rope": list(config.axes),
    }


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= _LARGEST


def read_config(content: Mapping[str, Any]) -> FluxConfig:
    """The configuration that ``config.json`` describes.

    :raises CheckpointError: for what this model cannot do.
    """
    for key, values in _KNOWN.items():
        value = content.get(key, values[0])
        if value not in values or isinstance(value, bool | float):
            raise CheckpointError(f"{key} = {content[key]!r}: the model flux knows only {values[0]!r}")
    sizes = {key: content.get(key, default) for key, default in _SIZES.items()}
    wrong = [f"{key} = {value!r}" for key, value in sizes.items() if not _is_size(value)]
    guidance = content.get("guidance_embeds", False)
    axes = content.get("axes_dims_rope", (16, 56, 56))
    if not isinstance(guidance, bool):
        wrong.append(f"guidance_embeds = {guidance!r}")
    if not isinstance(axes, list | tuple) or len(axes) != 3 or any(type(size) is not int for size in axes):
        wrong.append(f"axes_dims_rope = {axes!r}")
    if wrong:
        raise CheckpointError(f"no model has {', '.join(wrong)}")
    return FluxConfig(
        dim=sizes["num_attention_heads"] * sizes["attention_head_dim"],
        n_heads=sizes["num_attention_heads"],
        n_double_blocks=sizes["num_layers"],
        n_single_blocks=sizes["num_single_layers"],
        axes=(axes[0], axes[1], axes[2]),
        channels=sizes["in_channels"],
        text_dim=sizes["joint_attention_dim"],
        pooled_dim=sizes["pooled_projection_dim"],
        guidance=guidance,
    )
