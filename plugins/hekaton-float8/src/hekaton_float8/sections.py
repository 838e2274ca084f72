"""The configuration sections of this plugin."""

from __future__ import annotations

from typing import Annotated, Literal

from hekaton.config import SectionModel
from hekaton.config.base import NoEffect, OnlyWith


class Float8Section(SectionModel):
    """Products of linear layers in float8 (Micikevicius et al., 2022, "FP8 Formats for Deep Learning").
    Weights are kept, updated and saved in their own precision, and cast for each product."""

    recipe_name: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise"] | None = None
    """What shares a scale: a tensor (``tensorwise``, the default: E4M3, gradients in E5M2), a row
    (``rowwise``: E4M3, scales that are powers of 2), or 128 neighbours of inputs and gradients and 128 x 128
    of a weight (``blockwise``: E4M3, DeepSeek V3's). ``rowwise_with_gw_hp`` computes the gradients of weights
    in their own precision."""

    filter_fqns: list[str] = []  # noqa: RUF012, pydantic copies it
    """Layers that are left as they are: texts that their names contain, or patterns
    (``"layers.{0,1}.**"``). ``auto_filter_small_kn`` leaves those that are too small to gain on an H100, and
    those whose sizes are no multiples of 16, of ``blockwise`` of 128."""

    enable_fsdp_float8_all_gather: bool = False
    """Cast weights before they are gathered over FSDP ranks, with one scale for all ranks, which halves what
    is sent; for ``tensorwise`` alone."""

    precompute_float8_dynamic_scale_for_fsdp: Annotated[bool, OnlyWith("enable_fsdp_float8_all_gather")] = (
        False
    )
    """Compute the scales of all weights after each optimizer step, with one reduction over ranks."""

    force_recompute_fp8_weight_in_bwd: Annotated[
        bool, NoEffect("torchao has no such choice any more: float8 weights are never kept for backward")
    ] = False
    """Cast weights again in backward."""

    emulate: bool = False
    """Round to float8 and compute in the precision of the run, for hardware without float8. A CPU always
    does."""


class GroupedFloat8Section(SectionModel):
    """Products of experts in float8. Weights are kept, updated and saved in their own precision."""

    recipe_name: Literal["rowwise", "blockwise"] = "rowwise"
    """What shares a scale, as in ``[quantize.linear.float8]``."""

    fqns: list[str] = ["experts"]  # noqa: RUF012, pydantic copies it
    """Experts that are converted: texts that the names of their modules contain, or patterns
    (``"layers.{2,3}.**"``)."""

    emulate: bool = False
    """Round to float8 and compute in the precision of the run, for hardware without float8. A CPU always
    does."""
