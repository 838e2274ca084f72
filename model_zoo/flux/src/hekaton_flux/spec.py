"""FLUX.1's tables: flavors, how it is cut, how it starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from hekaton.init import Constant, Initializer, Normal
from hekaton.parallel.plan import ParallelPlan
from hekaton.patterns import compile_pattern
from hekaton.spec import Refusal, RunFacts, TrainSpec
from hekaton_flux.model import SINUSOIDS, Flux, FluxConfig

_PUBLISHED = {"dim": 3_072, "n_heads": 24, "n_double_blocks": 19, "n_single_blocks": 38}

# Shapes of the published models (src/flux/util.py of black-forest-labs/flux).
flavors = {
    "debugmodel": FluxConfig(
        dim=128, n_heads=4, n_double_blocks=2, n_single_blocks=2, axes=(4, 14, 14),
        channels=16, text_dim=64, pooled_dim=32,
    ),
    "dev": FluxConfig(**_PUBLISHED, guidance=True),
    "schnell": FluxConfig(**_PUBLISHED),
    # By torchtitan's names; there dev is not given the guidance scale.
    "flux-debug": FluxConfig(dim=1_536, n_heads=12, n_double_blocks=2, n_single_blocks=2),
    "flux-dev": FluxConfig(**_PUBLISHED),
    "flux-schnell": FluxConfig(**_PUBLISHED),
}  # fmt: skip


def plan(config: FluxConfig) -> ParallelPlan:
    """How the model is cut. Queries, keys and values are one matrix in the published layout, and so is what a
    single block computes from its input: under tensor parallel their outputs are cut where they are computed,
    and gathered, so that every rank attends with all heads."""
    return ParallelPlan(
        block="{double_blocks,single_blocks}.*",
        tensor={
            "{img_in,txt_in}": "replicate",
            f"{_embedders(config)}.{{in_layer,out_layer}}": "replicate",
            "double_blocks.*.{img_mod,txt_mod}.lin": "whole_colwise",
            "double_blocks.*.{img_attn,txt_attn}.qkv": "whole_colwise",
            "double_blocks.*.{img_attn,txt_attn}.norm.{query_norm,key_norm}": "replicate",
            "double_blocks.*.{img_attn,txt_attn}.proj": "whole_rowwise",
            "double_blocks.*.{img_mlp,txt_mlp}.0": "colwise",
            "double_blocks.*.{img_mlp,txt_mlp}.2": "summed_rowwise",
            "single_blocks.*.modulation.lin": "whole_colwise",
            "single_blocks.*.linear1": "whole_colwise",
            "single_blocks.*.norm.{query_norm,key_norm}": "replicate",
            "single_blocks.*.linear2": "whole_rowwise",
            "final_layer.linear": "replicate",
            "final_layer.adaLN_modulation.1": "replicate",
        },
        context=["{double_blocks,single_blocks}.*.inner"],
    )


def _embedders(config: FluxConfig) -> str:
    """A pattern of what embeds conditions."""
    return "{time_in,vector_in,guidance_in}" if config.guidance else "{time_in,vector_in}"


def init(config: FluxConfig) -> Mapping[str, Initializer]:
    """How the model starts: every modulation and the output at 0, so that each block is the identity and the
    velocity 0 (adaLN-Zero; Peebles and Xie, 2022); other matrices with the variance of Glorot and Bengio
    (2010), except those of the conditions."""
    dim, hidden = config.dim, config.hidden_dim
    zero, condition = Constant(0.0), Normal(0.02)
    embedders = _embedders(config)
    return {
        "img_in.weight": _glorot(config.channels, dim),
        "txt_in.weight": _glorot(config.text_dim, dim),
        f"{embedders}.{{in_layer,out_layer}}.weight": condition,
        "double_blocks.*.{img_attn,txt_attn}.qkv.weight": _glorot(dim, 3 * dim),
        "double_blocks.*.{img_attn,txt_attn}.proj.weight": _glorot(dim, dim),
        "double_blocks.*.{img_mlp,txt_mlp}.{0,2}.weight": _glorot(dim, hidden),
        "double_blocks.*.{img_mod,txt_mod}.lin.{weight,bias}": zero,
        "single_blocks.*.linear1.weight": _glorot(dim, 3 * dim + hidden),
        "single_blocks.*.linear2.weight": _glorot(dim + hidden, dim),
        "single_blocks.*.modulation.lin.{weight,bias}": zero,
        "**.norm.{query_norm,key_norm}.weight": Constant(1.0),
        "final_layer.linear.{weight,bias}": zero,
        "final_layer.adaLN_modulation.1.{weight,bias}": zero,
        f"{{img_in,txt_in,{embedders[1:-1]}}}.**.bias": zero,
        "**.{qkv,proj,linear1,linear2,0,2}.bias": zero,
    }


def flops_per_row(config: FluxConfig, shapes: Mapping[str, Sequence[int]]) -> float:
    """Forward and backward, per image with its text: 6 operations per parameter and each vector that it
    multiplies, and 12 per pair of positions and channel of each attention."""
    dim, hidden = config.dim, config.hidden_dim
    img, txt = shapes["img"][0], shapes["txt"][0]
    both = img + txt
    double = both * (4 * dim**2 + 2 * dim * hidden) + 12 * dim**2
    single = both * (4 * dim**2 + 2 * dim * hidden) + 3 * dim**2
    first = (img * config.channels + txt * config.text_dim + config.pooled_dim) * dim  # no gradient of inputs
    first += SINUSOIDS * (1 + config.guidance) * dim
    ends = img * config.channels * dim + (4 + config.guidance) * dim**2
    blocks = config.n_double_blocks + config.n_single_blocks
    multiplied = config.n_double_blocks * double + config.n_single_blocks * single + ends
    return 6.0 * multiplied + 4.0 * first + 12.0 * blocks * dim * both**2


def multiplied(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Parameter -> how many positions of an image with its text it multiplies."""
    img, txt = shapes["img"][0], shapes["txt"][0]
    positions: dict[str, float] = {
        "{time_in,vector_in,guidance_in}.**": 1,
        "**.{img_mod,txt_mod,modulation,adaLN_modulation}.**": 1,
        "{img_in,final_layer}.**": img,
        "double_blocks.*.{img_attn,img_mlp}.**": img,
        "txt_in.**": txt,
        "double_blocks.*.{txt_attn,txt_mlp}.**": txt,
        "single_blocks.*.{linear1,linear2}.**": img + txt,
    }
    patterns = [(compile_pattern(pattern), times) for pattern, times in positions.items()]
    return {
        name: next(times for pattern, times in patterns if pattern.fullmatch(name))
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }


def _glorot(inputs: int, outputs: int) -> Normal:
    return Normal(math.sqrt(2 / (inputs + outputs)))


def check(config: FluxConfig, facts: RunFacts) -> Iterator[Refusal]:
    """What tensor parallel cannot cut."""
    if (config.dim * (1 + config.hidden_dim_factor)) % facts.tp or config.dim % facts.tp:
        yield Refusal(
            f"has dim = {config.dim}, parallelism.tensor_parallel_degree = {facts.tp} does not divide it",
            ("parallelism.tensor_parallel_degree",),
        )


train_spec = TrainSpec(
    name="flux",
    model=Flux,
    flavors=flavors,
    plan=plan,
    init=init,
    objective="flow_matching",
    flops_per_row=flops_per_row,
    multiplied=multiplied,
    defaults={name: {"training": {"packing": "images"}} for name in flavors},
    check=check,
)
