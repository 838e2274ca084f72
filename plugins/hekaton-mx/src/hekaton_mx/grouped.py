"""The converter ``quantize.grouped_mm.mx``: products of experts in MXFP8, under the same names."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torchao.prototype.moe_training import _to_mxfp8_then_scaled_grouped_mm
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

from hekaton.draft import Draft
from hekaton.expert_choices import choose_experts, replace_products
from hekaton.grouped_products import GroupedProduct, placed, rounded_product, spread, with_bias
from hekaton.mesh import ParallelDims
from hekaton_mx import GROUPED
from hekaton_mx.linear import BLOCK
from hekaton_mx.sections import GroupedMXSection


class GroupedMX:
    """Products of experts in MXFP8, as the section says.

    A weight stays a parameter of the model's own precision under its own name.
    """

    def __init__(self, section: GroupedMXSection, dims: ParallelDims) -> None:
        self._section = section
        self._dims = dims

    def convert(self, draft: Draft) -> Draft:
        """:raises ConfigError: as :func:`hekaton.expert_choices.choose_experts`."""
        choices = choose_experts(
            draft, self._section.fqns, field=f"{GROUPED}.fqns", multiple=BLOCK, etp=self._dims.etp
        )
        product = product_of(self._section)
        replace_products(draft.model, choices, lambda plain: product)
        return replace(draft, choices={**draft.choices, GROUPED: choices})


def product_of(section: GroupedMXSection) -> GroupedProduct:
    """What the experts of a section compute with."""
    scales = ScaleCalculationMode(section.scale_calculation_mode)
    precise = "wgrad_with_hp" in section.recipe_name
    if "emulated" in section.recipe_name or not torch.cuda.is_available():
        return functools.partial(rounded_product, number_format=MXFP8(scales, weight_gradients=not precise))
    return functools.partial(mxfp8_product, scales=scales, wgrad_with_hp=precise)


def mxfp8_product(
    rows: torch.Tensor,
    weights: torch.Tensor,
    counts: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scales: ScaleCalculationMode,
    wgrad_with_hp: bool,
) -> torch.Tensor:
    """A :class:`~hekaton.grouped_products.GroupedProduct` by torchao's kernels, which give bfloat16.

    :param wgrad_with_hp: compute gradients of weights in their own precision.
    """
    out: torch.Tensor = _to_mxfp8_then_scaled_grouped_mm(
        rows,
        weights.mT,
        offs=counts.cumsum(0, dtype=torch.int32),
        wgrad_with_hp=wgrad_with_hp,
        scale_calculation_mode=scales,
        pad_token_groups_for_grouped_mm=True,
    )
    return with_bias(out.to(rows.dtype), bias, counts)


@dataclass(frozen=True)
class MXFP8:
    """E4M3, 32 neighbours of which share a scale; see :class:`hekaton.grouped_products.Format`.

    :param weight_gradients: round what gradients of weights are computed from.
    """

    scales: ScaleCalculationMode
    weight_gradients: bool = True

    def along(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        along = x.transpose(dim, -1).contiguous()
        scales, values = to_mx(along, torch.float8_e4m3fn, BLOCK, scaling_mode=self.scales)
        blocks = values.to(x.dtype).unflatten(-1, (-1, BLOCK)) * scales.to(x.dtype).unsqueeze(-1)
        return blocks.flatten(-2).transpose(dim, -1)

    def of_weights(self, weights: torch.Tensor, dim: int) -> torch.Tensor:
        return self.along(weights, dim)

    def along_groups(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if not self.weight_gradients:
            return x
        place, _, places = spread(counts, len(x), BLOCK)
        return self.along(placed(x, place, places), 0).index_select(0, place)
