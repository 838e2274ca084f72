"""The configuration sections of this plugin."""

from __future__ import annotations

from typing import Annotated, Literal

from hekaton.config import SectionModel
from hekaton.config.base import NoEffect, OnlyWith

_MXFP8 = (
    "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp", "mxfp8_emulated_rceil", "mxfp8_cublas", "mxfp8_emulated",
)  # fmt: skip


class MXSection(SectionModel):
    """Products of linear layers in MXFP8 (OCP Microscaling Formats 1.0): values in E4M3, 32
    neighbours of which share a scale that is a power of 2; or in NVFP4 (NVIDIA, 2025, "Pretraining Large
    Language Models with NVFP4"). Weights are kept, updated and saved in their own precision."""

    recipe_name: Literal[
        "mxfp8_rceil",
        "mxfp8_rceil_wgrad_with_hp",
        "mxfp8_emulated_rceil",
        "mxfp8_cublas",
        "mxfp8_emulated",
        "nvfp4",
        "nvfp4_emulated",
    ] = "mxfp8_rceil"
    """The recipe, by torchao's names: ``mxfp8_rceil`` rounds scales up, so that nothing is beyond the largest
    value; ``mxfp8_rceil_wgrad_with_hp`` computes gradients of weights in their own precision;
    ``mxfp8_emulated_rceil`` rounds to MXFP8 and computes in the precision of the run, as a CPU always does.
    ``mxfp8_cublas`` and ``mxfp8_emulated`` are their names in earlier files. ``nvfp4`` and
    ``nvfp4_emulated``: values in E2M1, 16 of which share a scale in E4M3, of weights 16 x 16; gradients are
    rounded stochastically."""

    scale_calculation_mode: Annotated[Literal["rceil", "floor"], OnlyWith("recipe_name", _MXFP8)] = "rceil"
    """How scales of MXFP8 are rounded: ``rceil`` as above, or ``floor`` as in the OCP specification, with
    which the largest values of a block are saturated."""

    mxfp8_dim1_cast_kernel_choice: Annotated[
        Literal["triton", "cuda", "torch"], NoEffect("torchao chooses the kernel of the cast")
    ] = "triton"
    """Kernel of the cast along the second dim."""

    filter_fqns: list[str] = ["output"]  # noqa: RUF012, pydantic copies it
    """Layers that are left as they are: texts that their names contain, or patterns. ``auto_filter_small_kn``
    leaves those whose sizes are no multiples of 32, of NVFP4 of 128."""


class GroupedMXSection(SectionModel):
    """Products of experts in MXFP8 (OCP Microscaling Formats 1.0), as those of linear layers."""

    recipe_name: Literal[
        "mxfp8",
        "mxfp8_rceil",
        "mxfp8_rceil_wgrad_with_hp",
        "mxfp8_emulated_rceil",
        "nvfp4",
    ] = "mxfp8"
    """The recipe, by torchao's names, as in ``[quantize.linear.mx]``; ``mxfp8`` is the earlier name of
    ``mxfp8_rceil``. ``nvfp4`` is refused, with the reason."""

    scale_calculation_mode: Literal["rceil", "floor"] = "rceil"
    """How scales are rounded, as in ``[quantize.linear.mx]``."""

    fqns: list[str] = ["experts"]  # noqa: RUF012, pydantic copies it
    """Experts that are converted: texts that the names of their modules contain, or patterns
    (``"layers.{2,3}.**"``)."""
